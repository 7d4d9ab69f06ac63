"""Measures what disturbs timings: other programs on the cores, and how far equal steps differ."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medusa_trt.runtime.engines.cores import count_usable_cores

_MAX_MISSING_CORES = 0.1
_MAX_SPREAD = 0.25
_PROC_STAT = Path("/proc/stat")
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)
"""Columns of /proc/stat that count busy time: user, nice, system, irq, softirq and steal."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What disturbed a measurement.

    Attributes:
        missing_cores: mean number of cores that the threads needed and other programs used; None
            where the system does not count it.
        spread: interquartile range of the times of equal steps, divided by their median; None
            without steps.
    """

    missing_cores: float | None
    spread: float | None

    @classmethod
    def from_samples(
        cls, free_cores: float | None, num_threads: int | None, groups: Iterable[Sequence[float]]
    ) -> "Noise":
        """Summarizes a measurement.

        Args:
            free_cores: the result of `CoreWatch.count_free_cores`.
            num_threads: threads of a step; None for as many as there are cores.
            groups: the times of equal steps, one group for each kind of step. `spread` becomes the
                median over the groups.
        """
        quartiles = [np.percentile(times, (25, 50, 75)) for times in groups if len(times)]
        spreads = [(high - low) / median for low, median, high in quartiles if median > 0]
        used_cores = min(num_threads or count_usable_cores(), os.cpu_count() or 1)
        return cls(
            missing_cores=None if free_cores is None else max(0.0, used_cores - free_cores),
            spread=float(np.median(spreads)) if spreads else None,
        )

    @property
    def warning(self) -> str | None:
        """A sentence about a busy machine, or None for a quiet one."""
        reasons = []
        if self.missing_cores is not None and self.missing_cores > _MAX_MISSING_CORES:
            reasons.append(f"other programs used {self.missing_cores:.1f} of the cores it needs")
        if self.spread is not None and self.spread > _MAX_SPREAD:
            reasons.append(f"the times of equal steps spread by {100 * self.spread:.0f} %")
        if not reasons:
            return None
        return f"The machine was busy during the measurement: {' and '.join(reasons)}."


class CoreWatch:
    """Measures how many of the cores that this process may use are free of other programs.

    The measurement begins when the object is made.
    """

    def __init__(self) -> None:
        self._start = _read_clocks()

    def count_free_cores(self) -> float | None:
        """Mean number of cores without other programs; None where the system does not count it."""
        end = _read_clocks()
        if end is None or self._start is None or end[0] <= self._start[0]:
            return None
        wall_s, busy_s, process_s = (b - a for a, b in zip(self._start, end, strict=True))
        return len(os.sched_getaffinity(0)) - (busy_s - process_s) / wall_s


def _read_clocks() -> tuple[float, float, float] | None:
    """Reads three times in seconds: the clock, the busy time of this process's cores, its CPU time.

    The busy time counts the work of all programs.
    """
    if not (_PROC_STAT.is_file() and hasattr(os, "sched_getaffinity")):
        return None
    names = {f"cpu{processor}" for processor in os.sched_getaffinity(0)}
    rows = [line.split() for line in _PROC_STAT.read_text().splitlines()]
    ticks = sum(int(row[i]) for row in rows if row and row[0] in names for i in _BUSY_COLUMNS)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
