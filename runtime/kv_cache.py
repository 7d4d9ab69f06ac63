"""The KV cache in host memory: one slab for all layers, updated in place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, slots=True)
class KVCache:
    """One sequence's keys and values.

    Attributes:
        slab: (num_layers, 2, 1, num_kv_heads, capacity, head_dim); index 0 of the second axis
            holds the keys, 1 the values. The memory is zeroed lazily by the operating system, so
            rows that are never reached cost nothing.
    """

    slab: NDArray[np.generic]

    @classmethod
    def zeros(
        cls, *, num_layers: int, num_kv_heads: int, capacity: int, head_dim: int, dtype: DTypeLike
    ) -> "KVCache":
        """An empty cache for `capacity` rows."""
        return cls(np.zeros((num_layers, 2, 1, num_kv_heads, capacity, head_dim), dtype))

    @property
    def capacity(self) -> int:
        """Number of rows."""
        return int(self.slab.shape[4])

    def layer(self, index: int, kind: str) -> NDArray[np.generic]:
        """View of a layer's "key" or "value" tensor (1, num_kv_heads, capacity, head_dim)."""
        view: NDArray[np.generic] = self.slab[index, ("key", "value").index(kind)]
        return view

    def commit(self, past_length: int, nodes: Sequence[int]) -> None:
        """Makes the accepted nodes' rows contiguous after `past_length`.

        Args:
            past_length: rows that were valid before the step.
            nodes: the accepted nodes, root first and increasing, as positions in the step; row
                `past_length + nodes[i]` becomes row `past_length + i`.
        """
        in_place = 0
        while in_place < len(nodes) and nodes[in_place] == in_place:
            in_place += 1
        if in_place == len(nodes):
            return
        sources = [past_length + node for node in nodes[in_place:]]
        start = past_length + in_place
        self.slab[..., start : start + len(sources), :] = self.slab[..., sources, :]
