"""Step times against number of nodes and context: medians, intervals, interpolation."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import CalibrationError

NUM_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)

_Estimate = Callable[[Sequence[float], int], NDArray[np.float64]]
"""From samples and a seed to a figure, or to its bootstrap distribution."""


class LatencyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sample: a few steps of a session, milliseconds of one of them on average.

    Attributes:
        machine: fingerprint of the machine and the engine's version.
        threads: for one step; None for the engine's choice.
        batch_size: sequences stepped together.
        context: tokens in the cache before the first step.
        num_nodes: nodes of the tree, the root included; 1 is plain decoding.
        round: from 1.
        num_steps: steps measured.
        step_ms: the whole step: heads, candidates, verification, acceptance, commit and text.
        engine_ms: its part inside the engine; the rest is the host's.
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


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    low: float
    median: float
    high: float


def bootstrap_medians(samples: Sequence[float], seed: int = 0) -> NDArray[np.float64]:
    """(1000,) medians of resampled samples."""
    rng = np.random.default_rng(seed)
    resampled = rng.choice(np.asarray(samples, np.float64), (NUM_RESAMPLES, len(samples)))
    medians: NDArray[np.float64] = np.median(resampled, axis=1)
    return medians


def interval(median: float, resampled: NDArray[np.float64]) -> Interval:
    """The interval of a figure from its bootstrap distribution."""
    low, high = np.percentile(resampled, _INTERVAL).tolist()
    return Interval(low, median, high)


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Step times of one machine, batch size and number of threads.

    Between measured sizes and contexts times are interpolated linearly, and never beyond them.
    Kernels step up at certain sizes, so what lies between two measured sizes is a guess:
    `is_measured` tells.

    Attributes:
        samples: for each context and number of nodes the samples' step times in ms.
    """

    samples: dict[int, dict[int, list[float]]]

    @classmethod
    def from_records(cls, records: Iterable[LatencyRecord]) -> "LatencyCurve":
        """The curve of records of one machine, batch size and number of threads."""
        samples: dict[int, dict[int, list[float]]] = {}
        for record in records:
            own = samples.setdefault(record.context, {}).setdefault(record.num_nodes, [])
            own.append(record.step_ms)
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
        """Whether this size lies within the measured ones."""
        sizes = self.sizes
        return bool(sizes) and sizes[0] <= num_nodes <= sizes[-1]

    def step_ms(self, num_nodes: int, context: int) -> float:
        """Median step time.

        Raises:
            CalibrationError: the size or the context lies outside what was measured.
        """
        return self._interpolated(
            num_nodes, context, lambda samples, _: np.array([np.median(samples)])
        ).item()

    def step_ms_resampled(self, num_nodes: int, context: int) -> NDArray[np.float64]:
        """(1000,) the bootstrap distribution of `step_ms`; see there."""
        return self._interpolated(num_nodes, context, bootstrap_medians)

    def _interpolated(
        self, num_nodes: int, context: int, estimate: _Estimate
    ) -> NDArray[np.float64]:
        left, right, part = _neighbours(
            list(self.samples), context, "context", "calibrate latency --contexts"
        )
        at_left = self._at_context(num_nodes, left, estimate)
        return at_left + part * (self._at_context(num_nodes, right, estimate) - at_left)

    def _at_context(self, num_nodes: int, context: int, estimate: _Estimate) -> NDArray[np.float64]:
        by_size = self.samples[context]
        left, right, part = _neighbours(
            self.sizes, num_nodes, "number of nodes", "calibrate latency --sizes"
        )
        at_left, at_right = (estimate(by_size[n], 1000 * context + n) for n in (left, right))
        return at_left + part * (at_right - at_left)


def _neighbours(values: list[int], wanted: int, what: str, how: str) -> tuple[int, int, float]:
    """The measured values around the wanted one, and where between them it lies, 0 to 1."""
    if not values or not values[0] <= wanted <= values[-1]:
        measured = f"{values[0]} to {values[-1]}" if values else "none"
        raise CalibrationError(
            f"{what} {wanted} lies outside what was measured ({measured}): run medusa-trt {how}"
        )
    index = bisect_left(values, wanted)
    if values[index] == wanted:
        return wanted, wanted, 0.0
    left, right = values[index - 1], values[index]
    return left, right, (wanted - left) / (right - left)
