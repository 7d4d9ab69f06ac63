"""The engine on TensorRT and TensorRT-RTX: device memory bound once, steps as CUDA graphs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.device_cache import DeviceCache
from medusa_trt.runtime.device_memory import Cuda, cuda_runtime
from medusa_trt.runtime.engine import Reductions, TokenIds, VerifyOutputs
from medusa_trt.runtime.engine_record import MODULES, Product
from medusa_trt.runtime.host_reductions import reductions_from_logits
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.trt_loading import load_engines
from medusa_trt.tree_configs import MedusaTree

_MASKED = float(np.finfo(np.float32).min)
_MAX_BINDINGS = 16
_READ_STEP = 256
"""Rows of the cache that are read come in multiples of this: each number is a graph of its own."""

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(slots=True)
class _Bound:
    """An execution context with fixed shapes and addresses, and the arrays that go with it.

    Attributes:
        context: TensorRT's.
        uploads: pinned arrays that every run copies to the device, with their addresses there.
        downloads: pinned arrays that every run fills.
        memory: all device memory of it.
        pinned: all pinned memory of it.
        graph: all of a run as a CUDA graph, from the second run on.
        num_runs: how often it ran.
    """

    context: Any
    uploads: dict[str, tuple[NDArray[Any], int]] = field(default_factory=dict)
    downloads: dict[str, tuple[NDArray[Any], int]] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    pinned: list[NDArray[Any]] = field(default_factory=list)
    graph: Any = None
    num_runs: int = 0
    tree: MedusaTree | None = None


class TrtEngine:
    """Runs a bundle's engines with TensorRT or TensorRT-RTX.

    A step copies the token ids and lengths to the device, executes, and copies back the small
    outputs, all on one stream with one wait at the end. Its second run of a shape is recorded as a
    CUDA graph, copies included. The engine's cache outputs lie where its cache inputs are.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        product: Product = "tensorrt",
        folder: Path | None = None,
        capacity: int | None = None,
        batch_size: int = 1,
        module: Any = None,
        cuda: Any = None,
    ) -> None:
        """Loads the engines.

        Args:
            bundle: an opened bundle.
            product: "tensorrt" or "tensorrt-rtx".
            folder: of the engines; by default those in the bundle that fit this machine.
            capacity: rows of a KV cache slot that must be there; the engines' own number by
                default.
            batch_size: sequences that can be stepped together.
            module: the product's Python module; imported by default.
            cuda: the module of CUDA's runtime; cuda-python's by default.

        Raises:
            EngineError: the libraries, a GPU or fitting engines are missing.
        """
        self._module = module if module is not None else _imported(product)
        self._cuda = Cuda(cuda if cuda is not None else cuda_runtime())
        loaded = load_engines(bundle, folder, product, self._module, self._cuda)
        self._engines: dict[str, Any] = loaded.engines
        self._record, self._runtime = loaded.record, loaded.runtime
        self._model, self._heads_spec = bundle.manifest.model, bundle.manifest.heads
        target = bundle.manifest.target
        self._check_sizes(capacity, batch_size, target.cache_in_place)
        self._cache = DeviceCache(
            self._cuda,
            num_layers=self._model.num_layers,
            batch_size=batch_size,
            num_kv_heads=self._model.num_kv_heads,
            capacity=self._record.capacity,
            head_dim=self._model.head_dim,
            item_bytes=_ITEM_BYTES[target.cache_dtype],
            in_place=target.cache_in_place,
        )
        positions = self._cuda.pinned((self.capacity,), np.int64)
        positions[:] = np.arange(self.capacity)
        self._positions = self._cuda.allocate(positions.nbytes)
        self._cuda.upload(self._positions, positions)
        self._heads_read_root = bundle.manifest.heads_read_root
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
        self._check_open()
        longest = max(past_lengths) + tree.num_nodes
        if longest > self.capacity:
            raise EngineError(
                f"{tree.num_nodes} nodes after {max(past_lengths)} tokens do not fit the KV cache "
                f"of {self.capacity} rows: build engines with a larger --max-length"
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
        self._run("verify", bound)
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
        self._check_open()
        key = ("heads", len(hidden))
        bound = self._found(key)
        if bound is None:
            bound = self._bound("heads", 0)
            self._input(bound, names.HIDDEN, np.zeros_like(hidden), every_run=True)
            if self._heads_read_root:
                self._input(bound, names.ROOT_IDS, np.zeros(len(hidden), np.int64), every_run=True)
            shape = (len(hidden), self._heads_spec.num_heads, self._heads_spec.top_k)
            self._output(bound, names.DRAFT_IDS, shape, np.int64, wanted=True)
            self._keep(key, bound)
        bound.uploads[names.HIDDEN][0][...] = hidden
        if self._heads_read_root:
            bound.uploads[names.ROOT_IDS][0][:] = root_ids
        self._run("heads", bound)
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
        if self._engines:
            self._cuda.synchronize()
            # Contexts first, then engines, then the runtime: each holds on to the next.
            while self._bindings:
                self._release(self._bindings.popitem()[1])
            self._engines.clear()
            self._runtime, self._last = None, None
            self._cuda.close()

    def _check_open(self) -> None:
        if not self._engines:
            raise EngineError("the engine is closed: open a new session")

    def _check_sizes(self, capacity: int | None, batch_size: int, in_place: bool) -> None:
        if capacity is not None and capacity > self._record.capacity:
            raise EngineError(
                f"the engines were built for a KV cache of {self._record.capacity} rows, "
                f"{capacity} are needed: lower max_length, or build with a larger --max-length"
            )
        most = self._record.max_batch_size if in_place else 1
        if not 1 <= batch_size <= most:
            raise EngineError(
                f"batch_size is {batch_size}: these engines take 1 to {most}"
                + ("; build with a larger --max-batch-size" if in_place else "")
            )

    def _bind_verify(
        self,
        tree: MedusaTree,
        rows: Sequence[int],
        first_slot: int,
        num_sequences: int,
        logits: bool,
        num_read: int,
    ) -> _Bound:
        bound = self._bound("verify", self._profile_for(tree.num_nodes))
        bound.tree = tree
        mask = np.where(tree.attn_mask, np.float32(0), np.float32(_MASKED))
        ids = np.zeros((num_sequences, tree.num_nodes), np.int64)
        self._input(bound, names.INPUT_IDS, ids, every_run=True)
        self._input(bound, names.PAST_LENGTH, np.zeros(num_sequences, np.int64), every_run=True)
        self._input(bound, names.TREE_MASK, mask)
        self._input(bound, names.POSITION_OFFSETS, np.asarray(tree.position_offsets, np.int64))
        self._input(bound, names.ROWS, np.array(rows, np.int64))
        self._address(bound, names.CACHE_POSITIONS, self._positions, (num_read,))
        num_rows = num_sequences * len(rows)
        model = self._model
        self._output(bound, names.ARGMAX, (num_rows,), np.int64, wanted=True)
        self._output(bound, names.HIDDEN, (num_rows, model.hidden_size), np.float32, wanted=True)
        self._output(bound, names.LOGITS, (num_rows, model.vocab_size), np.float32, wanted=logits)
        shape = (num_sequences, model.num_kv_heads, self.capacity, model.head_dim)
        for layer in range(model.num_layers):
            for kind in ("key", "value"):
                past, present = self._cache.addresses(layer, kind, first_slot)
                self._address(bound, names.past_name(layer, kind), past, shape)
                self._address(bound, names.present_name(layer, kind), present)
        return bound

    def _profile_for(self, num_nodes: int) -> int:
        profiles = self._record.engines["verify"].profiles
        limits = [profile.inputs[names.INPUT_IDS].max[1] for profile in profiles]
        for index, limit in enumerate(limits):
            if num_nodes <= limit:
                return index
        raise EngineError(
            f"a step of {num_nodes} nodes: the engines take {max(limits)} at most; build with a "
            "larger --max-tree-nodes or --prefill-chunk"
        )

    def _bound(self, graph: str, profile: int) -> _Bound:
        context = self._engines[graph].create_execution_context()
        if context is None or not context.set_optimization_profile_async(
            profile, self._cuda.stream
        ):
            raise EngineError(
                f"TensorRT cannot make an execution context of the {graph} engine: the GPU's "
                "memory may be full"
            )
        return _Bound(context)

    def _input(
        self, bound: _Bound, name: str, array: NDArray[Any], *, every_run: bool = False
    ) -> None:
        pinned = self._cuda.pinned(array.shape, array.dtype)
        pinned[...] = array
        address = self._cuda.allocate(array.nbytes)
        bound.memory.append(address)
        bound.pinned.append(pinned)
        self._address(bound, name, address, array.shape)
        if every_run:
            bound.uploads[name] = pinned, address
        else:
            self._cuda.upload(address, pinned)

    def _output(
        self, bound: _Bound, name: str, shape: tuple[int, ...], dtype: Any, *, wanted: bool
    ) -> None:
        address = self._cuda.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        bound.memory.append(address)
        self._address(bound, name, address)
        if wanted:
            pinned = self._cuda.pinned(shape, dtype)
            bound.pinned.append(pinned)
            bound.downloads[name] = pinned, address

    @staticmethod
    def _address(
        bound: _Bound, name: str, address: int, input_shape: tuple[int, ...] | None = None
    ) -> None:
        fits = input_shape is None or bound.context.set_input_shape(name, input_shape)
        if not fits or not bound.context.set_tensor_address(name, address):
            raise EngineError(
                f"the engine does not take {name} of shape {input_shape}: build it again with "
                "larger limits"
            )

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

    def _run(self, engine: str, bound: _Bound) -> None:
        """One execution, and the wait for what it says."""
        bound.num_runs += 1
        if bound.num_runs == 2:
            # The first run did what TensorRT leaves for it; from here on nothing changes.
            bound.graph = self._cuda.captured(lambda: self._enqueue(engine, bound))
        if bound.graph is not None:
            self._cuda.launch(bound.graph)
        else:
            self._enqueue(engine, bound)
        self._cuda.synchronize()

    def _enqueue(self, graph: str, bound: _Bound) -> None:
        for array, address in bound.uploads.values():
            self._cuda.upload(address, array)
        if not bound.context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"TensorRT failed in the {graph} engine")
        for array, address in bound.downloads.values():
            self._cuda.download(array, address)


def _imported(product: Product) -> Any:
    try:
        return import_module(MODULES[product])
    except ImportError as error:
        raise EngineError(
            f"{product} is not installed: pip install 'medusa-trt[{product}]'"
        ) from error
