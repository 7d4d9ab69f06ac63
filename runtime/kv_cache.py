"""The KV cache in host memory: one slab for all layers, updated in place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of `batch_size` sequences, one slot each.

    Attributes:
        slab: (num_layers, 2, batch_size, num_kv_heads, capacity, head_dim); index 0 of the second
            axis holds the keys, 1 the values. The memory is zeroed lazily by the operating
            system, so rows that are never reached cost nothing. bfloat16, which numpy does not
            have, is held as the bits of uint16.
    """

    slab: NDArray[np.generic]

    @classmethod
    def zeros(
        cls,
        *,
        num_layers: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: DTypeLike,
        batch_size: int = 1,
    ) -> "KVCache":
        """An empty cache for `capacity` rows a slot."""
        return cls(np.zeros((num_layers, 2, batch_size, num_kv_heads, capacity, head_dim), dtype))

    def floats(self, length: int) -> NDArray[np.float32]:
        """The first `length` rows of everything, (..., length, head_dim), in single precision."""
        rows = self.slab[..., :length, :]
        if rows.dtype == np.uint16:
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)

    def fill(self, values: NDArray[np.float32]) -> None:
        """Writes what can be broadcast to the slab; towards zero where the cache is bfloat16."""
        self.slab[...] = values.view(np.uint32) >> 16 if self.slab.dtype == np.uint16 else values

    @property
    def capacity(self) -> int:
        """Number of rows a slot."""
        return int(self.slab.shape[4])

    @property
    def batch_size(self) -> int:
        """Number of slots."""
        return int(self.slab.shape[2])

    def layer(
        self, index: int, kind: str, first_slot: int = 0, num_slots: int = 1
    ) -> NDArray[np.generic]:
        """View of some slots of a layer's "key" or "value" tensor.

        Returns:
            (num_slots, num_kv_heads, capacity, head_dim), contiguous.
        """
        slots = slice(first_slot, first_slot + num_slots)
        view: NDArray[np.generic] = self.slab[index, ("key", "value").index(kind), slots]
        return view

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """Makes the accepted nodes' rows contiguous after `past_length`.

        Args:
            slot: the sequence's slot.
            past_length: rows that were valid before the step.
            nodes: the accepted nodes, root first and increasing, as positions in the step; row
                `past_length + nodes[i]` becomes row `past_length + i`.
        """
        rows = self.slab[:, :, slot]
        for position, node in enumerate(nodes):
            # Sources only lie ahead of targets, so copying in order overwrites nothing needed.
            if node != position:
                rows[..., past_length + position, :] = rows[..., past_length + node, :]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` rows of one slot into another."""
        self.slab[:, :, target, :, :length] = self.slab[:, :, source, :, :length]
