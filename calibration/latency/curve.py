"""Logged step times, and their curve over number of nodes and context."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.intervals import resample_medians
from medusa_trt.errors import CalibrationError

LATENCY_FILE = "latency.jsonl"

_Estimate = Callable[[Sequence[float], int], NDArray[np.float64]]
"""Makes a figure, or its bootstrap distribution, from samples and a seed."""


class LatencyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sample: a few steps of a session, and the mean time of one of them.

    Attributes:
        machine: fingerprint of the machine, its versions and the bundle.
        threads: threads of a step; None if the engine chooses.
        batch_size: sequences stepped together.
        context: tokens in the cache before the first step.
        num_nodes: nodes of the tree, the root included; 1 is plain decoding.
        round: number of the round, from 1.
        num_steps: steps that were measured.
        step_ms: time of a whole step: heads, candidates, verify, acceptance, commit and text.
        engine_ms: the part of it that is spent inside the engine; the rest is spent in Python.
        heads_ms: the part of it that is spent in the heads; None in older records.
        free_cores: cores that other work left meanwhile; see `CoreWatch`.
    """

    machine: str
    threads: int | None
    batch_size: int
    context: int
    num_nodes: int
    round: int
    num_steps: int
    step_ms: float
    engine_ms: float
    heads_ms: float | None = None
    free_cores: float | None = None

    @property
    def kind(self) -> "LatencyKind":
        """What samples of one curve have in common."""
        return self.machine, self.threads, self.batch_size


LatencyKind = tuple[str, int | None, int]
"""Machine, number of threads and batch size of a record."""


def select_records(records: Iterable[LatencyRecord], kind: LatencyKind) -> list[LatencyRecord]:
    """Picks the records of one kind."""
    return [record for record in records if record.kind == kind]


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Step times of one machine, batch size and number of threads.

    Times are interpolated linearly between measured sizes and contexts, never extrapolated.
    A kernel's time may jump at certain sizes, so a time between two measured sizes is a guess;
    `is_measured` tells.

    Attributes:
        samples: step times of the samples in ms, by context and then by number of nodes.
    """

    samples: dict[int, dict[int, list[float]]]

    @classmethod
    def from_records(cls, records: Iterable[LatencyRecord]) -> "LatencyCurve":
        """Makes a curve of records that share machine, batch size and number of threads."""
        samples: dict[int, dict[int, list[float]]] = {}
        for record in records:
            by_size = samples.setdefault(record.context, {})
            by_size.setdefault(record.num_nodes, []).append(record.step_ms)
        return cls({context: dict(sorted(by.items())) for context, by in sorted(samples.items())})

    @property
    def sizes(self) -> list[int]:
        """Numbers of nodes that were measured at every context."""
        by_context = [set(sizes) for sizes in self.samples.values()]
        return sorted(set.intersection(*by_context)) if by_context else []

    def is_measured(self, num_nodes: int) -> bool:
        """Whether this size was measured at every context."""
        return num_nodes in self.sizes

    def covers(self, num_nodes: int) -> bool:
        """Whether this size lies between the smallest and the largest measured one."""
        sizes = self.sizes
        return bool(sizes) and sizes[0] <= num_nodes <= sizes[-1]

    def step_ms(self, num_nodes: int, context: int) -> float:
        """Median step time in milliseconds.

        Raises:
            CalibrationError: the size or the context lies outside the measured range.
        """
        return self._interpolate(
            num_nodes, context, lambda samples, _: np.array([np.median(samples)])
        ).item()

    def resample_step_ms(self, num_nodes: int, context: int) -> NDArray[np.float64]:
        """Bootstrap distribution (NUM_RESAMPLES,) of `step_ms`, which has the errors."""
        return self._interpolate(num_nodes, context, resample_medians)

    def _interpolate(
        self, num_nodes: int, context: int, estimate: _Estimate
    ) -> NDArray[np.float64]:
        left, right, fraction = _find_neighbours(
            list(self.samples), context, "context", "calibrate latency --contexts"
        )
        at_left = self._at_context(num_nodes, left, estimate)
        return at_left + fraction * (self._at_context(num_nodes, right, estimate) - at_left)

    def _at_context(self, num_nodes: int, context: int, estimate: _Estimate) -> NDArray[np.float64]:
        by_size = self.samples[context]
        left, right, fraction = _find_neighbours(
            self.sizes, num_nodes, "number of nodes", "calibrate latency --sizes"
        )
        at_left, at_right = (estimate(by_size[n], 1000 * context + n) for n in (left, right))
        return at_left + fraction * (at_right - at_left)


def _find_neighbours(
    values: list[int], target: int, quantity: str, command: str
) -> tuple[int, int, float]:
    """Finds the measured values around a target, and its place between them, from 0 to 1."""
    if not values or not values[0] <= target <= values[-1]:
        measured_range = f"{values[0]} to {values[-1]}" if values else "none"
        raise CalibrationError(
            f"{quantity} {target} lies outside what was measured ({measured_range}): run "
            f"medusa-trt {command}"
        )
    index = bisect_left(values, target)
    if values[index] == target:
        return target, target, 0.0
    left, right = values[index - 1], values[index]
    return left, right, (target - left) / (right - left)
