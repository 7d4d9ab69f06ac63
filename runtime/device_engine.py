"""The engine on a GPU: memory bound once for each shape, steps that wait once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.device_cache import DeviceCache
from medusa_trt.runtime.device_executor import Executable, Executor
from medusa_trt.runtime.device_memory import Cuda
from medusa_trt.runtime.engine import Reductions, TokenIds, VerifyOutputs
from medusa_trt.runtime.host_reductions import reductions_from_logits
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree

_MASKED = float(np.finfo(np.float32).min)
_MAX_BINDINGS = 16
_READ_STEP = 256
"""Rows of the cache that are read come in multiples of this: each number is a graph of its own."""

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(slots=True)
class _Bound:
    """An executable with all its tensors bound.

    Attributes:
        executable: the executor's.
        tree: kept alive, since the binding is found by its identity.
        uploads: pinned arrays that every run copies to the device, with their addresses there.
        downloads: pinned arrays that every run fills.
        memory: all device memory of it.
        pinned: all pinned memory of it.
        graph: all of a run as a CUDA graph, from the second run on.
        num_runs: how often it ran.
    """

    executable: Executable
    tree: MedusaTree | None
    uploads: dict[str, tuple[NDArray[Any], int]] = field(default_factory=dict)
    downloads: dict[str, tuple[NDArray[Any], int]] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    pinned: list[NDArray[Any]] = field(default_factory=list)
    graph: Any = None
    num_runs: int = 0


class DeviceEngine:
    """Runs a bundle's graphs on a GPU, whatever executes them.

    A step copies the token ids and lengths to the device, executes, and copies back the small
    outputs, all on one stream with one wait at the end. Where the executor allows it, the second
    run of a shape is recorded as a CUDA graph, copies included. The cache outputs lie where the
    cache inputs are.
    """

    def __init__(
        self, bundle: Bundle, executor: Executor, cuda: Cuda, *, capacity: int, batch_size: int
    ) -> None:
        """Allocates the KV cache.

        Args:
            bundle: an opened bundle.
            executor: of its graphs, on the stream of `cuda`; closed with the engine.
            cuda: the device; closed with the engine.
            capacity: rows of a KV cache slot.
            batch_size: number of slots.

        Raises:
            EngineError: the device's memory is full.
        """
        self._executor: Executor | None = executor
        self._cuda = cuda
        self._model, self._heads_spec = bundle.manifest.model, bundle.manifest.heads
        self._heads_read_root = bundle.manifest.heads_read_root
        target = bundle.manifest.target
        self._cache_dtype = target.cache_dtype
        self._cache = DeviceCache(
            cuda,
            num_layers=self._model.num_layers,
            batch_size=batch_size,
            num_kv_heads=self._model.num_kv_heads,
            capacity=capacity,
            head_dim=self._model.head_dim,
            item_bytes=_ITEM_BYTES[target.cache_dtype],
            in_place=target.cache_in_place,
        )
        positions = cuda.pinned((capacity,), np.int64)
        positions[:] = np.arange(capacity)
        self._positions = cuda.allocate(positions.nbytes)
        cuda.upload(self._positions, positions)
        self._bindings: dict[tuple[object, ...], _Bound] = {}
        self._last: VerifyOutputs | None = None

    @property
    def capacity(self) -> int:
        """See `Engine.capacity`."""
        return self._cache.capacity

    @property
    def batch_size(self) -> int:
        """See `Engine.batch_size`."""
        return self._cache.batch_size

    def verify(
        self,
        input_ids: TokenIds,
        tree: MedusaTree,
        past_lengths: Sequence[int],
        *,
        rows: Sequence[int] | None = None,
        first_slot: int = 0,
        logits: bool = False,
    ) -> VerifyOutputs:
        """See `Engine.verify`."""
        longest = max(past_lengths) + tree.num_nodes
        if longest > self.capacity:
            raise EngineError(
                f"{tree.num_nodes} nodes after {max(past_lengths)} tokens do not fit the KV cache "
                f"of {self.capacity} rows: {self._more_room}"
            )
        num_read = min(self.capacity, -(-longest // _READ_STEP) * _READ_STEP)
        shown = tuple(range(tree.num_nodes) if rows is None else rows)
        num_sequences = len(past_lengths)
        key = (id(tree), num_sequences, first_slot, shown, logits, num_read, self._cache.current)
        bound = self._found(key)
        if bound is None:
            bound = self._bind_verify(tree, shown, first_slot, num_sequences, logits, num_read)
            self._keep(key, bound)
        bound.uploads[names.INPUT_IDS][0][...] = input_ids
        bound.uploads[names.PAST_LENGTH][0][:] = past_lengths
        self._run(bound)
        self._cache.stepped()
        shape = (num_sequences, len(shown))
        found = {name: array for name, (array, _) in bound.downloads.items()}
        self._last = VerifyOutputs(
            argmax=found[names.ARGMAX].reshape(shape),
            hidden=found[names.HIDDEN].reshape(*shape, -1),
            logits=found[names.LOGITS].reshape(*shape, -1) if logits else None,
        )
        return self._last

    def reduce(
        self,
        input_ids: TokenIds,
        tree: MedusaTree,
        sampling: SamplingOptions,
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        """See `Engine.reduce`; computed on the host."""
        assert self._last is not None and self._last.logits is not None
        return reductions_from_logits(self._last.logits, input_ids, tree, sampling, uniforms)

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> NDArray[np.int64]:
        """See `Engine.draft`."""
        key = ("heads", len(hidden))
        bound = self._found(key)
        if bound is None:
            bound = self._bound("heads", None)
            self._input(bound, names.HIDDEN, np.zeros_like(hidden), every_run=True)
            if self._heads_read_root:
                self._input(bound, names.ROOT_IDS, np.zeros(len(hidden), np.int64), every_run=True)
            shape = (len(hidden), self._heads_spec.num_heads, self._heads_spec.top_k)
            self._output(bound, names.DRAFT_IDS, shape, "int64", wanted=True)
            self._keep(key, bound)
        bound.uploads[names.HIDDEN][0][...] = hidden
        if self._heads_read_root:
            bound.uploads[names.ROOT_IDS][0][:] = root_ids
        self._run(bound)
        drafts: NDArray[np.int64] = bound.downloads[names.DRAFT_IDS][0]
        return drafts

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """See `Engine.commit`."""
        self._cache.commit(slot, past_length, nodes)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Engine.move`."""
        self._cache.move(source, target, length)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._executor is not None:
            self._cuda.synchronize()
            # Executables first: each holds on to what the executor frees.
            while self._bindings:
                self._release(self._bindings.popitem()[1])
            self._executor.close()
            self._executor, self._last = None, None
            self._cuda.close()

    @property
    def _more_room(self) -> str:
        """What to do where the cache is too small."""
        return "open the session with a larger max_length"

    def _bind_verify(
        self,
        tree: MedusaTree,
        rows: Sequence[int],
        first_slot: int,
        num_sequences: int,
        logits: bool,
        num_read: int,
    ) -> _Bound:
        bound = self._bound("verify", tree)
        mask = np.where(tree.attn_mask, np.float32(0), np.float32(_MASKED))
        ids = np.zeros((num_sequences, tree.num_nodes), np.int64)
        self._input(bound, names.INPUT_IDS, ids, every_run=True)
        self._input(bound, names.PAST_LENGTH, np.zeros(num_sequences, np.int64), every_run=True)
        if bound.executable.takes(names.TREE_MASK):
            self._input(bound, names.TREE_MASK, mask)
            self._input(bound, names.POSITION_OFFSETS, np.asarray(tree.position_offsets, np.int64))
        self._input(bound, names.ROWS, np.array(rows, np.int64))
        bound.executable.bind_input(names.CACHE_POSITIONS, self._positions, (num_read,), "int64")
        num_rows = num_sequences * len(rows)
        model = self._model
        self._output(bound, names.ARGMAX, (num_rows,), "int64", wanted=True)
        self._output(bound, names.HIDDEN, (num_rows, model.hidden_size), "float32", wanted=True)
        self._output(bound, names.LOGITS, (num_rows, model.vocab_size), "float32", wanted=logits)
        shape = (num_sequences, model.num_kv_heads, self.capacity, model.head_dim)
        for layer in range(model.num_layers):
            for kind in ("key", "value"):
                past, present = self._cache.addresses(layer, kind, first_slot)
                name, updated = names.past_name(layer, kind), names.present_name(layer, kind)
                bound.executable.bind_input(name, past, shape, self._cache_dtype)
                bound.executable.bind_output(updated, present, shape, self._cache_dtype)
        return bound

    def _bound(self, graph: str, tree: MedusaTree | None) -> _Bound:
        if self._executor is None:
            raise EngineError("the engine is closed: open a new session")
        return _Bound(self._executor.open(graph, tree), tree)

    def _input(
        self, bound: _Bound, name: str, array: NDArray[Any], *, every_run: bool = False
    ) -> None:
        pinned = self._cuda.pinned(array.shape, array.dtype)
        pinned[...] = array
        address = self._cuda.allocate(array.nbytes)
        bound.memory.append(address)
        bound.pinned.append(pinned)
        bound.executable.bind_input(name, address, array.shape, array.dtype.name)
        if every_run:
            bound.uploads[name] = pinned, address
        else:
            self._cuda.upload(address, pinned)

    def _output(
        self, bound: _Bound, name: str, shape: tuple[int, ...], dtype: str, *, wanted: bool
    ) -> None:
        address = self._cuda.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        bound.memory.append(address)
        bound.executable.bind_output(name, address, shape, dtype)
        if wanted:
            pinned = self._cuda.pinned(shape, dtype)
            bound.pinned.append(pinned)
            bound.downloads[name] = pinned, address

    def _found(self, key: tuple[object, ...]) -> _Bound | None:
        """A binding that was kept, now the youngest."""
        bound = self._bindings.pop(key, None)
        if bound is not None:
            self._bindings[key] = bound
        return bound

    def _keep(self, key: tuple[object, ...], bound: _Bound) -> None:
        while len(self._bindings) >= _MAX_BINDINGS:
            self._cuda.synchronize()
            self._release(self._bindings.pop(next(iter(self._bindings))))
        self._bindings[key] = bound

    def _release(self, bound: _Bound) -> None:
        """Frees what a binding holds, none of which is in use after the last wait."""
        if bound.graph is not None:
            self._cuda.free_graph(bound.graph)
        for address in bound.memory:
            self._cuda.free(address)
        for array in bound.pinned:
            self._cuda.free_pinned(array)

    def _run(self, bound: _Bound) -> None:
        """One execution, and the wait for what it says."""
        assert self._executor is not None
        bound.num_runs += 1
        if bound.num_runs == 2 and self._executor.is_capturable:
            # The first run did what is left for it; from here on nothing changes.
            bound.graph = self._cuda.captured(lambda: self._enqueue(bound))
        if bound.graph is not None:
            self._cuda.launch(bound.graph)
        else:
            self._enqueue(bound)
        self._cuda.synchronize()

    def _enqueue(self, bound: _Bound) -> None:
        for array, address in bound.uploads.values():
            self._cuda.upload(address, array)
        bound.executable.enqueue()
        for array, address in bound.downloads.values():
            self._cuda.download(array, address)
