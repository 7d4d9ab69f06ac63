"""What disturbs a measurement of times: other work on the cores, and how far equal steps differ."""

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
"""Columns of /proc/stat that count work: user, nice, system, both interrupts, and time that other
virtual machines took."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What disturbed a measurement.

    Attributes:
        missing_cores: cores, on average, that the threads wanted and other work had; None where the
            system does not tell.
        spread: of equal steps, the distance of the quartiles of their times over the median; None
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
            free_cores: as from `CoreWatch`.
            num_threads: threads of a step; None for as many as there are cores.
            groups: times of equal steps, whose spread counts by its median over the groups.
        """
        quartiles = [np.percentile(times, (25, 50, 75)) for times in groups if len(times)]
        spreads = [(high - low) / median for low, median, high in quartiles if median > 0]
        wanted = min(num_threads or count_usable_cores(), os.cpu_count() or 1)
        return cls(
            missing_cores=None if free_cores is None else max(0.0, wanted - free_cores),
            spread=float(np.median(spreads)) if spreads else None,
        )

    @property
    def warning(self) -> str | None:
        """A sentence about a busy machine, or None for a quiet one."""
        reasons = []
        if self.missing_cores is not None and self.missing_cores > _MAX_MISSING_CORES:
            reasons.append(f"other work had {self.missing_cores:.1f} of the cores that it uses")
        if self.spread is not None and self.spread > _MAX_SPREAD:
            reasons.append(f"the times of equal steps spread by {100 * self.spread:.0f} %")
        if not reasons:
            return None
        return f"The machine was busy while it was measured: {' and '.join(reasons)}."


class CoreWatch:
    """Watches how much of this process's processors other work takes, from its creation on."""

    def __init__(self) -> None:
        self._start = _read_clocks()

    def free_cores(self) -> float | None:
        """Processors, on average, that other work left; None where the system does not tell."""
        end = _read_clocks()
        if end is None or self._start is None or end[0] <= self._start[0]:
            return None
        wall_s, busy_s, own_s = (b - a for a, b in zip(self._start, end, strict=True))
        return len(os.sched_getaffinity(0)) - (busy_s - own_s) / wall_s


def _read_clocks() -> tuple[float, float, float] | None:
    """Seconds of the clock, of all work on this process's processors, and of its own work."""
    if not (_PROC_STAT.is_file() and hasattr(os, "sched_getaffinity")):
        return None
    names = {f"cpu{processor}" for processor in os.sched_getaffinity(0)}
    rows = [line.split() for line in _PROC_STAT.read_text().splitlines()]
    ticks = sum(int(row[i]) for row in rows if row and row[0] in names for i in _BUSY_COLUMNS)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
