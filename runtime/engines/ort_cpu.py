"""The engine on ONNX Runtime's CPU provider: preallocated buffers, bound once per tree shape."""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError, require_extra
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import (
    Drafts,
    Reductions,
    StepTree,
    TokenIds,
    TreeBatch,
    VerifyOutputs,
)
from medusa_trt.runtime.engines.cores import choose_num_threads
from medusa_trt.runtime.engines.kv_cache import KVCache
from medusa_trt.runtime.engines.operators import require_library
from medusa_trt.runtime.engines.ort_session import (
    BFLOAT16,
    check_process,
    make_session_options,
    open_session,
)
from medusa_trt.runtime.engines.reduce_tensors import (
    OUTPUTS,
    allocate_inputs,
    copy_outputs,
    find_parent_rows,
    make_empty_reductions,
    split_by_sampling,
    write_inputs,
)
from medusa_trt.runtime.options import SamplingOptions

_MAX_BINDINGS = 64


@dataclass(frozen=True, slots=True)
class _BoundGraph:
    """An I/O binding with its buffers, and the objects that must live as long as it.

    Attributes:
        binding: ONNX Runtime's object, of fixed shapes and addresses.
        inputs: buffers to write before a run.
        outputs: buffers that a run writes.
        tree: kept alive, because `id(tree)` is the key of the binding.
        returned: result of a step, on the memory of `outputs`.
    """

    binding: Any
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    tree: StepTree | None
    returned: VerifyOutputs | Drafts | None


class OrtEngine:
    """Runs a bundle's graphs with ONNX Runtime on the CPU.

    The shapes, mask and positions of a tree are bound once; a step then only writes its token ids
    and past lengths, and runs. The graph writes new cache rows into the memory of its cache input.

    Attributes:
        cache: the KV cache that the graphs read and write.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        capacity: int | None = None,
        batch_size: int = 1,
        num_threads: int | None = None,
    ) -> None:
        """Loads the graphs.

        Args:
            bundle: an opened bundle.
            capacity: number of rows in a KV cache slot, including room for the nodes of a step; by
                default enough for the bundle's maximum length and its tree.
            batch_size: number of sequences in one step. Above 1, the bundle's batch form of the
                verify graph is used if there is one.
            num_threads: threads for one step; see `choose_num_threads`.

        Raises:
            EngineError: an argument is out of range, or ONNX Runtime is missing or does not accept
                a graph.
        """
        num_threads = choose_num_threads(num_threads)
        self._process_id = os.getpid()
        if batch_size < 1:
            raise EngineError(f"batch_size is {batch_size}: it must be at least 1")
        self._model, self._heads_spec = bundle.manifest.model, bundle.manifest.heads
        target = bundle.manifest.target
        self.batch_size, self.prefill_chunk = batch_size, target.prefill_chunk
        num_spare_rows = max(bundle.tree.num_nodes, target.min_rows)
        self.capacity = capacity or self._model.max_length + num_spare_rows
        self.cache = KVCache.zeros(
            num_layers=self._model.num_layers,
            num_kv_heads=self._model.num_kv_heads,
            capacity=self.capacity,
            head_dim=self._model.head_dim,
            dtype=np.uint16 if target.cache_dtype == "bfloat16" else target.cache_dtype,
            batch_size=batch_size,
        )
        has_batch_form = "verify_batch" in bundle.manifest.graphs
        verify = "verify_batch" if batch_size > 1 and has_batch_form else "verify"
        self._sessions = {
            name: _open_session(bundle, graph, num_threads)
            for name, graph in (("verify", verify), ("heads", "heads"), ("reduce", "reduce"))
            if graph in bundle.manifest.graphs
        }
        inputs = {spec.name: spec for spec in bundle.manifest.graphs[verify].inputs}
        self._reads_positions = names.CACHE_POSITIONS in inputs
        self._takes_tree_per_sequence = len(inputs[names.TREE_MASK].shape) == 3
        heads = bundle.manifest.graphs.get("heads")
        self._has_logprobs = heads is not None and names.DRAFT_LOGPROBS in [
            spec.name for spec in heads.outputs
        ]
        self.takes_new_trees = (heads is None or self._has_logprobs) and (
            batch_size == 1 or self._takes_tree_per_sequence
        )
        self._heads_read_root = bundle.manifest.heads_read_root
        self._reduce_spec = bundle.manifest.graphs.get("reduce")
        self._bindings: dict[tuple[object, ...], _BoundGraph] = {}
        # The system gives this memory when a step first writes to it.
        num_rows = max(self.prefill_chunk, batch_size * bundle.tree.num_nodes)
        self._logits_memory = np.zeros((num_rows, self._model.vocab_size), np.float32)
        self._last_logits: NDArray[np.float32] | None = None

    def verify(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        past_lengths: Sequence[int],
        *,
        rows: Sequence[int] | None = None,
        first_slot: int = 0,
        logits: bool = False,
        reductions: bool = False,
    ) -> VerifyOutputs:
        """See `Engine.verify`; logits to be reduced are returned too."""
        logits |= reductions
        if max(past_lengths) + tree.num_nodes > self.capacity:
            raise EngineError(
                f"{tree.num_nodes} nodes after {max(past_lengths)} tokens do not fit the KV cache "
                f"of {self.capacity} rows: open the session with a larger max_length"
            )
        num_sequences = len(past_lengths)
        is_new = isinstance(tree, TreeBatch) and not tree.is_kept
        tree_key = -tree.num_nodes if is_new else id(tree)
        key = ("verify", tree_key, num_sequences, first_slot, None if rows is None else tuple(rows))
        bound = self._bindings.get((*key, logits))
        if bound is None:
            shown_rows = range(tree.num_nodes) if rows is None else rows
            bound = self._bind_verify(tree, shown_rows, first_slot, num_sequences, logits)
            self._keep((*key, logits), bound)
        elif is_new:
            bound.inputs[names.TREE_MASK][...] = tree.additive_mask
            bound.inputs[names.POSITION_OFFSETS][...] = tree.position_offsets
        _write_ids(bound.inputs[names.INPUT_IDS], input_ids)
        bound.inputs[names.PAST_LENGTH][:] = past_lengths
        self._run("verify", bound)
        self._last_logits = bound.outputs.get(names.LOGITS)
        assert isinstance(bound.returned, VerifyOutputs)
        return bound.returned

    def reduce(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        samplings: Sequence[SamplingOptions],
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        """See `Engine.reduce`."""
        assert self._last_logits is not None
        ids, num_rows = np.asarray(input_ids), uniforms.shape[1]
        reductions = make_empty_reductions(uniforms.shape)
        for group in split_by_sampling(samplings):
            sampling, sequences = group
            logits = self._last_logits[sequences.start * num_rows : sequences.stop * num_rows]
            key = ("reduce", logits.ctypes.data, len(logits))
            bound = self._bindings.get(key)
            if bound is None:
                bound = self._bind_reduce(logits)
                self._keep(key, bound)
            parents = find_parent_rows(tree, sequences, num_rows)
            numbers = uniforms[sequences]
            vocab_size = self._model.vocab_size
            write_inputs(bound.inputs, ids[sequences], parents, sampling, numbers, vocab_size)
            self._run("reduce", bound)
            copy_outputs(reductions, group, bound.outputs, numbers, logits.__getitem__)
        return reductions

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        """See `Engine.draft`."""
        key = ("heads", len(hidden))
        bound = self._bindings.get(key)
        if bound is None:
            spec = self._heads_spec
            assert spec is not None  # the decode loop asks no heads that are not there
            shape = (len(hidden), spec.num_heads, spec.top_k)
            inputs: dict[str, NDArray[Any]] = {names.HIDDEN: np.zeros_like(hidden)}
            if self._heads_read_root:
                inputs[names.ROOT_IDS] = np.zeros(len(hidden), np.int64)
            ids = np.zeros(shape, np.int64)
            outputs: dict[str, NDArray[Any]] = {names.DRAFT_IDS: ids}
            logprobs = None
            if self._has_logprobs:
                outputs[names.DRAFT_LOGPROBS] = logprobs = np.zeros(shape, np.float32)
            bound = self._bind("heads", inputs, outputs, returned=Drafts(ids, logprobs))
            self._keep(key, bound)
        np.copyto(bound.inputs[names.HIDDEN], hidden)
        if self._heads_read_root:
            bound.inputs[names.ROOT_IDS][:] = root_ids
        self._run("heads", bound)
        assert isinstance(bound.returned, Drafts)
        return bound.returned

    def close(self) -> None:
        """See `Engine.close`."""
        self._bindings.clear()
        self._sessions.clear()
        self._logits_memory = self._logits_memory[:0].copy()
        self._last_logits = None

    def _keep(self, key: tuple[object, ...], bound: _BoundGraph) -> None:
        while len(self._bindings) >= _MAX_BINDINGS:
            self._bindings.pop(next(iter(self._bindings)))
        self._bindings[key] = bound

    def _share_logits(self, num_rows: int) -> NDArray[np.float32]:
        """Returns memory for rows of logits; all bindings share it, because a row is large.

        ONNX Runtime would make its own memory for them where they are not bound, and would keep
        one part for each new largest step.
        """
        if num_rows > len(self._logits_memory):
            for key, bound in list(self._bindings.items()):
                if names.LOGITS in bound.inputs or names.LOGITS in bound.outputs:
                    del self._bindings[key]
            self._last_logits = None
            num_rows_kept = max(num_rows, 2 * len(self._logits_memory))
            self._logits_memory = np.zeros((num_rows_kept, self._model.vocab_size), np.float32)
        return self._logits_memory[:num_rows]

    def _run(self, graph: str, bound: _BoundGraph) -> None:
        if graph not in self._sessions:
            raise EngineError("the engine is closed: open a new session")
        check_process(self._process_id)
        try:
            self._sessions[graph].run_with_iobinding(bound.binding)
        except Exception as error:  # see `open_session`
            raise EngineError(f"ONNX Runtime failed in the {graph} graph: {error}") from error

    def _bind_verify(
        self,
        tree: StepTree,
        rows: Sequence[int],
        first_slot: int,
        num_sequences: int,
        logits: bool,
    ) -> _BoundGraph:
        num_nodes = tree.num_nodes
        trees = (num_sequences,) if self._takes_tree_per_sequence else ()
        shape: tuple[int, ...] = *trees, num_nodes, num_nodes
        if isinstance(tree, TreeBatch) and tree.is_kept:
            mask = tree.additive_mask.reshape(shape)
            offsets = tree.position_offsets.reshape(shape[:-1])
        else:
            mask, offsets = np.empty(shape, np.float32), np.empty(shape[:-1], np.int64)
            mask[...], offsets[...] = tree.additive_mask, tree.position_offsets
        inputs: dict[str, NDArray[Any]] = {
            names.INPUT_IDS: np.zeros((num_sequences, num_nodes), np.int64),
            names.TREE_MASK: mask,
            names.POSITION_OFFSETS: offsets,
            names.PAST_LENGTH: np.zeros(num_sequences, np.int64),
            names.ROWS: np.array(rows, np.int64),
        }
        if self._reads_positions:
            inputs[names.CACHE_POSITIONS] = np.arange(self.capacity)
        hidden_size, vocab_size = self._model.hidden_size, self._model.vocab_size
        num_outputs = num_sequences, len(rows)
        shared = self._share_logits(num_sequences * len(rows))
        verify_outputs = VerifyOutputs(
            argmax=np.zeros(num_outputs, np.int64),
            hidden=np.zeros((*num_outputs, hidden_size), np.float32),
            logits=shared.reshape(*num_outputs, vocab_size) if logits else None,
        )
        outputs: dict[str, NDArray[Any]] = {
            names.ARGMAX: verify_outputs.argmax.reshape(-1),
            names.HIDDEN: verify_outputs.hidden.reshape(-1, hidden_size),
            names.LOGITS: shared,
        }
        for layer in range(self._model.num_layers):
            for kind in ("key", "value"):
                view = self.cache.layer(layer, kind, first_slot, num_sequences)
                inputs[names.past_name(layer, kind)] = view
                outputs[names.present_name(layer, kind)] = view
        return self._bind("verify", inputs, outputs, tree, verify_outputs)

    def _bind_reduce(self, logits: NDArray[np.float32]) -> _BoundGraph:
        num_rows = len(logits)
        assert self._reduce_spec is not None  # only an unfinished bundle has no such graph
        inputs: dict[str, NDArray[Any]] = {
            names.LOGITS: logits,
            **allocate_inputs(self._reduce_spec, num_rows),
        }
        outputs = {name: np.zeros(num_rows, dtype) for name, dtype in OUTPUTS.items()}
        return self._bind("reduce", inputs, outputs)

    def _bind(
        self,
        graph: str,
        inputs: dict[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        tree: StepTree | None = None,
        returned: VerifyOutputs | Drafts | None = None,
    ) -> _BoundGraph:
        if graph not in self._sessions:
            raise EngineError("the engine is closed: open a new session")
        binding = self._sessions[graph].io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array_ in arrays.items():
                # A cache of bfloat16 is held as uint16.
                element_type = BFLOAT16 if array_.dtype == np.uint16 else array_.dtype.type
                bind(name, "cpu", 0, element_type, array_.shape, array_.ctypes.data)
        return _BoundGraph(binding, inputs, outputs, tree, returned)


def _write_ids(buffer: NDArray[np.int64], input_ids: TokenIds) -> None:
    """Writes (B, N) ids; numpy's conversion of a list takes too long for the usual batch of 1."""
    if isinstance(input_ids, np.ndarray) or len(input_ids) > 1:
        buffer[...] = input_ids
    else:
        buffer.data.cast("B").cast("q")[:] = array("q", input_ids[0])


def _open_session(bundle: Bundle, graph: str, num_threads: int) -> Any:
    with require_extra("decoding", "ort-cpu", error_class=EngineError):
        import onnxruntime
    options = make_session_options(onnxruntime)
    if bundle.manifest.target.operator_library:
        options.register_custom_ops_library(os.fspath(require_library()))
        # Long enough for the way to a step's next operator. A thread that spins for longer takes
        # time from other programs, and the system takes it back while the thread is at work.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    # Sessions share no threads. If they spin after a run, they hold the cores that the
    # next session needs: on two cores a step took 47.8 ms instead of 26.2 ms.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = num_threads
    return open_session(onnxruntime, bundle.graph_path(graph), options, "CPUExecutionProvider")
