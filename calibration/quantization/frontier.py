"""Finds the best format of each matrix for every budget.

The KL divergence of a choice is predicted by the sum of the divergences that the matrices cause
alone. To second order this holds for independent errors; the true divergence is measured later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.export.weight_formats import Format


@dataclass(frozen=True, slots=True)
class Option:
    """A format of a site, with its size and the KL divergence in nats that it causes alone."""

    format: Format
    size_bytes: int
    kl: float


@dataclass(frozen=True, slots=True)
class _Step:
    """For each choice after a site: the choice before the site, and the format of the site."""

    name: str
    formats: tuple[Format, ...]
    parents: NDArray[np.int32]
    chosen: NDArray[np.int8]


@dataclass(frozen=True)
class Frontier:
    """The choices of formats for all sites that no other choice beats in both size and KL.

    Attributes:
        sizes: (F,) int64 bytes, rising.
        kls: (F,) float64 predicted KL divergences in nats, falling.
    """

    sizes: NDArray[np.int64]
    kls: NDArray[np.float64]
    _steps: tuple[_Step, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def find_within_size(self, max_bytes: float) -> int | None:
        """Index of the choice with the least KL within a size; None if all choices are larger."""
        index = int(np.searchsorted(self.sizes, max_bytes, side="right")) - 1
        return None if index < 0 else index

    def find_within_kl(self, max_kl: float) -> int | None:
        """Index of the smallest choice within a KL; None if all choices have more."""
        index = int(np.argmax(self.kls <= max_kl))
        return index if self.kls[index] <= max_kl else None

    def formats(self, index: int) -> dict[str, Format]:
        """The format of each site in a choice."""
        by_site: dict[str, Format] = {}
        for step in reversed(self._steps):
            by_site[step.name] = step.formats[step.chosen[index]]
            index = int(step.parents[index])
        return dict(reversed(by_site.items()))


def frontier_from_options(sites: Mapping[str, Sequence[Option]]) -> Frontier:
    """Finds the frontier exactly, by dynamic programming (a multiple-choice knapsack).

    After each site only those partial choices are kept that no other one beats in size and KL.
    They stay few, since layers of the same shapes have few different total sizes.

    Args:
        sites: at least one option of each site, by its name. Sizes and KLs are at least 0.
    """
    sizes, kls = np.zeros(1, np.int64), np.zeros(1)
    steps: list[_Step] = []
    for name, options in sites.items():
        all_sizes = np.concatenate([sizes + option.size_bytes for option in options])
        all_kls = np.concatenate([kls + option.kl for option in options])
        order = np.lexsort((all_kls, all_sizes))
        least_before = np.minimum.accumulate(np.append(np.inf, all_kls[order]))[:-1]
        unbeaten = order[all_kls[order] < least_before]
        chosen, parents = np.divmod(unbeaten, len(sizes))
        formats = tuple(option.format for option in options)
        steps.append(_Step(name, formats, parents.astype(np.int32), chosen.astype(np.int8)))
        sizes, kls = all_sizes[unbeaten], all_kls[unbeaten]
    return Frontier(sizes, kls, tuple(steps))
