"""The KV cache in host memory: one slab for all layers, updated in place."""

import mmap
from array import array
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.operators import load_function

_HUGE_PAGE_BYTES = 4 << 20
"""Size from which on numpy asks the operating system for huge pages."""

_MAX_MOVED = 64
"""Largest number of nodes that `medusa_trt_commit` takes; see native/cache.h."""


def _allocate_in_small_pages(sizes: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocates an array of zeros that takes its memory in small pages, as rows are written.

    numpy asks for huge pages of 2 MiB. The rows in use lie far apart, at the beginning of each
    head's part, so the first token would touch and clear nearly the whole cache.
    """
    size_bytes = prod(sizes) * dtype.itemsize
    if not hasattr(mmap, "MADV_NOHUGEPAGE") or size_bytes < _HUGE_PAGE_BYTES:
        return np.zeros(sizes, dtype)
    memory = mmap.mmap(-1, size_bytes)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(sizes)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of `batch_size` sequences, one slot each.

    Attributes:
        slab: (num_layers, 2, batch_size, num_kv_heads, capacity, head_dim); index 0 of the second
            axis holds the keys, 1 the values. The operating system zeroes memory when it is first
            used, so unused rows cost nothing. The bits of bfloat16, which numpy does not have,
            are held as uint16.
    """

    slab: NDArray[np.generic]
    _native: "_NativeCommit | None" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        function = load_function("commit")
        native = None if function is None else _NativeCommit(function, self.slab)
        object.__setattr__(self, "_native", native)

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
        """Allocates an empty cache with `capacity` rows in each slot.

        Raises:
            EngineError: there is not enough memory.
        """
        sizes = num_layers, 2, batch_size, num_kv_heads, capacity, head_dim
        try:
            return cls(_allocate_in_small_pages(sizes, np.dtype(dtype)))
        # The last three are raised for sizes beyond the address space.
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            size_gb = prod(sizes) * np.dtype(dtype).itemsize / 1e9
            raise EngineError(
                f"a KV cache of {capacity} positions for {batch_size} sequences takes "
                f"{size_gb:.1f} GB, more memory than there is: give a smaller --max-length "
                "or fewer sequences"
            ) from error

    def fill(self, values: NDArray[np.float32]) -> None:
        """Broadcasts values to the slab; bfloat16 is rounded towards zero."""
        self.slab[...] = values.view(np.uint32) >> 16 if self.slab.dtype == np.uint16 else values

    @property
    def capacity(self) -> int:
        """Number of rows in a slot."""
        return int(self.slab.shape[4])

    @property
    def batch_size(self) -> int:
        """Number of slots."""
        return int(self.slab.shape[2])

    def layer(
        self, index: int, kind: str, first_slot: int = 0, num_slots: int = 1
    ) -> NDArray[np.generic]:
        """View of neighbouring slots of a layer's "key" or "value" tensor.

        Returns:
            (num_slots, num_kv_heads, capacity, head_dim), contiguous.
        """
        slots = slice(first_slot, first_slot + num_slots)
        view: NDArray[np.generic] = self.slab[index, ("key", "value").index(kind), slots]
        return view

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """See `RowCache`."""
        if nodes[-1] == len(nodes) - 1:
            return  # the rows are contiguous already
        if self._native is not None and len(nodes) <= _MAX_MOVED:
            self._native.run(slot, past_length, nodes)
            return
        rows = self.slab[:, :, slot]
        for position, node in enumerate(nodes):
            # Each source lies after its target, so copying in order overwrites no later source.
            if node != position:
                rows[..., past_length + position, :] = rows[..., past_length + node, :]

    def move(self, source: int, target: int, length: int) -> None:
        """See `RowCache`."""
        self.slab[:, :, target, :, :length] = self.slab[:, :, source, :, :length]

    def exchange(self, first: int, second: int, length: int) -> None:
        """See `RowCache`."""
        for layer in self.slab:
            rows = layer[:, first, :, :length].copy()
            layer[:, first, :, :length] = layer[:, second, :, :length]
            layer[:, second, :, :length] = rows


class _NativeCommit:
    """`KVCache.commit` by the operator library.

    Between two steps the processor's caches are almost empty, and the conversions of ctypes then
    take 20 us of a call. So all arguments lie in memory whose address is converted only once.
    """

    def __init__(self, function: Callable[[c_void_p], None], slab: NDArray[np.generic]) -> None:
        """Fills in the constant fields of `medusa::Commit`."""
        assert slab.flags.c_contiguous
        num_layers, num_kinds, *lengths, head_dim = slab.shape
        layout = (slab.ctypes.data, num_layers * num_kinds, *lengths, head_dim * slab.itemsize)
        self._values = array("q", (*layout, *[0] * (3 + _MAX_MOVED)))
        self._address = c_void_p(self._values.buffer_info()[0])
        self._function = function

    def run(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """Moves the rows."""
        values = self._values
        values[6], values[7], values[8] = slot, past_length, len(nodes)
        for place, node in enumerate(nodes, start=9):
            values[place] = node
        self._function(self._address)
