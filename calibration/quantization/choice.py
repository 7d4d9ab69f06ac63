"""The best format of each matrix under a budget: pure functions.

The KL divergences that the matrices cause alone are added: those of errors that have nothing to do
with each other do add up, to second order. What the sum misses is measured afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medusa_trt.export.weight_formats import Format


@dataclass(frozen=True, slots=True)
class Option:
    """One format of one site: its size, and the KL divergence (nats) that it causes alone."""

    format: "Format"
    size_bytes: int
    kl: float


@dataclass(frozen=True, slots=True)
class _Step:
    """How the states after a site were reached: from which state before it, by which format."""

    name: str
    formats: "tuple[Format, ...]"
    parents: NDArray[np.int32]
    chosen: NDArray[np.int8]


@dataclass(frozen=True)
class Frontier:
    """All choices that no other choice beats in both size and KL.

    Attributes:
        sizes: (F,) int64 bytes, rising.
        kls: (F,) float64 sums of KL divergences, falling.
    """

    sizes: NDArray[np.int64]
    kls: NDArray[np.float64]
    _steps: tuple[_Step, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def within_size(self, max_bytes: float) -> int | None:
        """Index of the choice of the least KL of at most this size; None if all are larger."""
        index = int(np.searchsorted(self.sizes, max_bytes, side="right")) - 1
        return None if index < 0 else index

    def within_kl(self, max_kl: float) -> int | None:
        """Index of the smallest choice of at most this KL; None if all have more."""
        index = int(np.argmax(self.kls <= max_kl))
        return index if self.kls[index] <= max_kl else None

    def formats(self, index: int) -> "dict[str, Format]":
        """The format of each site."""
        found: dict[str, Format] = {}
        for step in reversed(self._steps):
            found[step.name] = step.formats[step.chosen[index]]
            index = int(step.parents[index])
        return dict(reversed(found.items()))


def frontier_from_options(sites: Mapping[str, Sequence[Option]]) -> Frontier:
    """Finds the frontier exactly: a dynamic program over the sites (a multiple-choice knapsack).

    After each site only those beginnings are kept that no other beats in size and KL. Layers of
    the same shapes make few different sizes, so they stay few.

    Args:
        sites: at least one option of each, by the site's name; sizes and KLs of 0 or more.
    """
    sizes, kls = np.zeros(1, np.int64), np.zeros(1)
    steps: list[_Step] = []
    for name, options in sites.items():
        all_sizes = np.concatenate([sizes + option.size_bytes for option in options])
        all_kls = np.concatenate([kls + option.kl for option in options])
        order = np.lexsort((all_kls, all_sizes))
        least_before = np.minimum.accumulate(np.append(np.inf, all_kls[order]))[:-1]
        kept = order[all_kls[order] < least_before]
        chosen, parents = np.divmod(kept, len(sizes))
        formats = tuple(option.format for option in options)
        steps.append(_Step(name, formats, parents.astype(np.int32), chosen.astype(np.int8)))
        sizes, kls = all_sizes[kept], all_kls[kept]
    return Frontier(sizes, kls, tuple(steps))
