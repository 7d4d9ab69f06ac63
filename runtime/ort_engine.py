"""The engine on ONNX Runtime: preallocated buffers, bound once per tree shape."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engine import VerifyOutputs
from medusa_trt.runtime.kv_cache import KVCache
from medusa_trt.tree_configs import MedusaTree

_MASKED = float(np.finfo(np.float32).min)
_MAX_BOUND_STEPS = 16


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """A verify step of one shape: the binding and the host buffers it points into."""

    binding: Any
    tree: MedusaTree
    input_ids: NDArray[np.int64]
    constants: tuple[NDArray[np.generic], ...]
    outputs: VerifyOutputs


class OrtEngine:
    """Runs a bundle's graphs with ONNX Runtime on the CPU, one sequence at a time.

    Shapes, mask and positions of a tree are bound once; a step then only writes its token ids
    and the past length, and runs. The graph writes new cache rows where the old ones are.
    """

    def __init__(
        self, bundle: Bundle, *, capacity: int | None = None, num_threads: int | None = None
    ) -> None:
        """Loads the verify and heads graphs.

        Args:
            bundle: an opened bundle.
            capacity: rows of the KV cache, including room for one step's nodes; by default what
                the bundle's largest length and its own tree need.
            num_threads: threads for one step; ONNX Runtime's choice (the physical cores) by
                default.

        Raises:
            EngineError: ONNX Runtime is missing or does not accept a graph.
        """
        model = bundle.manifest.model
        self._target = bundle.manifest.target
        rows = max(bundle.tree.num_nodes, self._target.min_rows)
        self._capacity = capacity or model.max_length + rows
        self._model = model
        self._cache = KVCache.zeros(
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads,
            capacity=self._capacity,
            head_dim=model.head_dim,
            dtype=self._target.cache_dtype,
        )
        self._past_length = np.zeros(1, np.int64)
        self._steps: dict[tuple[object, ...], _BoundStep] = {}
        self._verify = _session_from_file(bundle, "verify", num_threads)
        self._heads = _session_from_file(bundle, "heads", num_threads)
        self._head_input = np.zeros((1, model.hidden_size), np.float32)
        heads = bundle.manifest.heads
        self._draft_ids = np.zeros((heads.num_heads, heads.top_k), np.int64)
        self._heads_binding = self._heads.io_binding()
        _bind_input(self._heads_binding, names.HIDDEN, self._head_input)
        _bind_output(self._heads_binding, names.DRAFT_IDS, self._draft_ids)
        self._closed = False

    @property
    def capacity(self) -> int:
        """Rows of the KV cache, room for a step's own nodes included."""
        return self._capacity

    @property
    def cache(self) -> KVCache:
        """The KV cache that the graphs read and write."""
        return self._cache

    def verify(
        self,
        input_ids: NDArray[np.int64],
        tree: MedusaTree,
        past_length: int,
        *,
        rows: Sequence[int] | None = None,
        logits: bool = False,
    ) -> VerifyOutputs:
        """See `Engine.verify`."""
        if self._closed:
            raise EngineError("the engine is closed: open a new session")
        if past_length + tree.num_nodes > self._capacity:
            raise EngineError(
                f"{tree.num_nodes} nodes after {past_length} tokens do not fit the KV cache of "
                f"{self._capacity} rows: open the session with a larger max_length"
            )
        step = self._bound_step(tree, tuple(rows) if rows is not None else None, logits)
        np.copyto(step.input_ids[0], input_ids)
        self._past_length[0] = past_length
        _run(self._verify, step.binding)
        return step.outputs

    def draft(self, hidden: NDArray[np.float32]) -> NDArray[np.int64]:
        """See `Engine.draft`."""
        if self._closed:
            raise EngineError("the engine is closed: open a new session")
        np.copyto(self._head_input[0], hidden)
        _run(self._heads, self._heads_binding)
        return self._draft_ids

    def commit(self, past_length: int, nodes: Sequence[int]) -> None:
        """See `Engine.commit`."""
        self._cache.commit(past_length, nodes)

    def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True
        self._steps.clear()
        self._verify = self._heads = self._heads_binding = None
        self._cache = KVCache(self._cache.slab[:0])

    def _bound_step(
        self, tree: MedusaTree, rows: tuple[int, ...] | None, logits: bool
    ) -> _BoundStep:
        key = (id(tree), rows, logits)
        step = self._steps.get(key)
        if step is None:
            while len(self._steps) >= _MAX_BOUND_STEPS:
                self._steps.pop(next(iter(self._steps)))
            step = self._bind_step(tree, range(tree.num_nodes) if rows is None else rows, logits)
            self._steps[key] = step
        return step

    def _bind_step(self, tree: MedusaTree, rows: Sequence[int], logits: bool) -> _BoundStep:
        binding = self._verify.io_binding()
        input_ids = np.zeros((1, tree.num_nodes), np.int64)
        mask = np.where(tree.attn_mask, np.float32(0), np.float32(_MASKED)).astype(np.float32)
        offsets = np.ascontiguousarray(tree.position_offsets)
        row_ids = np.array(rows, np.int64)
        _bind_input(binding, names.INPUT_IDS, input_ids)
        _bind_input(binding, names.TREE_MASK, mask)
        _bind_input(binding, names.POSITION_OFFSETS, offsets)
        _bind_input(binding, names.PAST_LENGTH, self._past_length)
        _bind_input(binding, names.ROWS, row_ids)
        for layer in range(self._model.num_layers):
            for kind in ("key", "value"):
                view = self._cache.layer(layer, kind)
                _bind_input(binding, names.past_name(layer, kind), view)
                _bind_output(binding, names.present_name(layer, kind), view)
        outputs = VerifyOutputs(
            argmax=np.zeros(len(row_ids), np.int64),
            hidden=np.zeros((len(row_ids), self._model.hidden_size), np.float32),
            logits=np.zeros((len(row_ids), self._model.vocab_size), np.float32) if logits else None,
        )
        _bind_output(binding, names.ARGMAX, outputs.argmax)
        _bind_output(binding, names.HIDDEN, outputs.hidden)
        if outputs.logits is not None:
            _bind_output(binding, names.LOGITS, outputs.logits)
        return _BoundStep(binding, tree, input_ids, (mask, offsets, row_ids), outputs)


def _session_from_file(bundle: Bundle, graph: str, num_threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "onnxruntime is not installed: pip install 'medusa-trt[ort-cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    # Each session has its own threads. Left spinning after a run, those of one hold the cores that
    # the other wants: on two cores a step took 47.8 ms instead of 26.2 ms.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    path = bundle.graph_path(graph)
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime raises many pybind classes with no common base
        raise EngineError(f"ONNX Runtime cannot load {path}: {error}") from error


def _run(session: Any, binding: Any) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # see _session_from_file
        raise EngineError(f"ONNX Runtime failed in a step: {error}") from error


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
