"""The KV cache in device memory, with the layout of `KVCache`; the device itself copies rows."""

from collections.abc import Sequence

from medusa_trt.runtime.engines.device.memory import Cuda


class DeviceCache:
    """Keys and values of `batch_size` sequences in one slab of device memory.

    The layout is (num_layers, 2, batch_size, num_kv_heads, capacity, head_dim). If graphs cannot
    write the cache in place there are two slabs; each step reads one and writes the other.

    Attributes:
        current: index of the slab that the next step reads.
    """

    def __init__(
        self,
        cuda: Cuda,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        item_bytes: int,
        in_place: bool,
    ) -> None:
        """Allocates the slabs: one if `in_place`, else two."""
        self._cuda = cuda
        self._num_layers, self._num_kv_heads = num_layers, num_kv_heads
        self._row_bytes = head_dim * item_bytes
        self._head_bytes = capacity * self._row_bytes
        self._slot_bytes = num_kv_heads * self._head_bytes
        self._tensor_bytes = batch_size * self._slot_bytes
        size_bytes = 2 * num_layers * self._tensor_bytes
        self._slabs = [cuda.allocate(size_bytes) for _ in range(1 if in_place else 2)]
        self.current = 0

    def addresses(self, layer: int, kind: str, first_slot: int = 0) -> tuple[int, int]:
        """Addresses at which a step reads and writes a layer's "key" or "value"."""
        index = 2 * layer + ("key", "value").index(kind)
        offset = index * self._tensor_bytes + first_slot * self._slot_bytes
        source = self._slabs[self.current]
        target = self._slabs[(self.current + 1) % len(self._slabs)]
        return source + offset, target + offset

    def advance(self) -> None:
        """Makes the next step read what this step wrote; call it after each step."""
        self.current = (self.current + 1) % len(self._slabs)

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """See `RowCache`."""
        begin = self._slabs[self.current] + slot * self._slot_bytes
        for position, node in enumerate(nodes):
            if node != position:
                target, source = (
                    begin + (past_length + row) * self._row_bytes for row in (position, node)
                )
                self._copy(target, source, self._row_bytes)

    def move(self, source: int, target: int, length: int) -> None:
        """See `RowCache`."""
        begin = self._slabs[self.current]
        self._copy(
            begin + target * self._slot_bytes,
            begin + source * self._slot_bytes,
            length * self._row_bytes,
        )

    def exchange(self, first: int, second: int, length: int) -> None:
        """See `RowCache`; goes through memory of one slot of one tensor."""
        spare = self._cuda.allocate(self._slot_bytes)
        for tensor in range(2 * self._num_layers):
            begin = self._slabs[self.current] + tensor * self._tensor_bytes
            left, right = (begin + slot * self._slot_bytes for slot in (first, second))
            for target, source in ((spare, left), (left, right), (right, spare)):
                self._cuda.copy_blocks(
                    target,
                    source,
                    size_bytes=length * self._row_bytes,
                    num_inner=self._num_kv_heads,
                    inner_stride=self._head_bytes,
                    num_outer=1,
                    outer_stride=self._tensor_bytes,
                )
        self._cuda.synchronize()
        self._cuda.free(spare)

    def _copy(self, target: int, source: int, size_bytes: int) -> None:
        self._cuda.copy_blocks(
            target,
            source,
            size_bytes=size_bytes,
            num_inner=self._num_kv_heads,
            inner_stride=self._head_bytes,
            num_outer=2 * self._num_layers,
            outer_stride=self._tensor_bytes,
        )
