"""Medians with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    low: float
    median: float
    high: float

    @classmethod
    def from_bootstrap(cls, median: float, resampled: NDArray[np.float64]) -> "Interval":
        """Makes the interval of a figure from its bootstrap distribution (NUM_RESAMPLES,)."""
        low, high = np.percentile(resampled, _PERCENTILES).tolist()
        return cls(low, median, high)


def resample_medians(samples: Sequence[float], seed: int = 0) -> NDArray[np.float64]:
    """Draws samples with replacement, and returns the (NUM_RESAMPLES,) medians of the draws."""
    rng = np.random.default_rng(seed)
    resampled = rng.choice(np.asarray(samples, np.float64), (NUM_RESAMPLES, len(samples)))
    medians: NDArray[np.float64] = np.median(resampled, axis=1)
    return medians
