"""An engine that runs a verify graph part by part, for bundles larger than the memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.export.passes.rewiring import take_over
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import TokenIds, VerifyOutputs
from medusa_trt.runtime.engines.operators import require_library
from medusa_trt.runtime.engines.ort_session import BFLOAT16, make_session_options
from medusa_trt.tree_configs import MedusaTree

_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"

SEGMENT_BYTES = 128 << 20
"""Bytes of the weights in one part; a single larger tensor is a part too."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Consecutive nodes as a model, with the names of its inputs and outputs."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SegmentedEngine:
    """Verifies like `OrtEngine`, but loads only one part of the graph at a time.

    It is slow, because every step reads all weights. It can neither draft nor commit.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        capacity: int,
        batch_size: int = 1,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Splits the graph; no weight is read yet."""
        self.batch_size, self.capacity = batch_size, capacity
        self._bundle = bundle
        has_form = "verify_batch" in bundle.manifest.graphs
        form = "verify_batch" if batch_size > 1 and has_form else "verify"
        self._segments = _split(ir.load(bundle.graph_path(form)), segment_bytes)
        inputs = {tensor.name: tensor for tensor in bundle.manifest.graphs[form].inputs}
        self._takes_tree_per_sequence = len(inputs[names.TREE_MASK].shape) == 3
        spec = bundle.manifest.model
        shape = (batch_size, spec.num_kv_heads, capacity, spec.head_dim)
        dtype = bundle.manifest.target.cache_dtype
        self._cache = {
            (layer, kind): np.zeros(shape, np.uint16 if dtype == "bfloat16" else dtype)
            for layer in range(spec.num_layers)
            for kind in ("key", "value")
        }

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
        """Runs one step; see `Engine.verify`. Logits are always returned."""
        del logits
        slots = slice(first_slot, first_slot + len(past_lengths))
        logit_rows = list(range(tree.num_nodes) if rows is None else rows)
        mask, offsets = tree.additive_mask, np.ascontiguousarray(tree.position_offsets)
        if self._takes_tree_per_sequence:
            mask = np.stack([mask] * len(past_lengths))
            offsets = np.stack([offsets] * len(past_lengths))
        values: dict[str, NDArray[Any]] = {
            names.INPUT_IDS: np.asarray(input_ids, np.int64),
            names.TREE_MASK: mask,
            names.POSITION_OFFSETS: offsets,
            names.PAST_LENGTH: np.array(past_lengths, np.int64),
            names.ROWS: np.array(logit_rows, np.int64),
            names.CACHE_POSITIONS: np.arange(self.capacity),
        }
        for place, cache in self._cache.items():
            values[names.past_name(*place)] = np.ascontiguousarray(cache[slots])
        for index, segment in enumerate(self._segments):
            values |= self._run(segment, values)
            read_later = {name for later in self._segments[index + 1 :] for name in later.inputs}
            for place, cache in self._cache.items():
                name = names.present_name(*place)
                if name in values and name not in read_later:
                    cache[slots] = values.pop(name)
        outputs = [values[name] for name in (names.ARGMAX, names.HIDDEN, names.LOGITS)]
        shape = (len(past_lengths), len(logit_rows))
        argmax, hidden, all_logits = (array.reshape(*shape, *array.shape[1:]) for array in outputs)
        return VerifyOutputs(argmax=argmax, hidden=hidden, logits=all_logits)

    def close(self) -> None:
        """Drops the graph and the cache."""
        self._segments, self._cache = [], {}

    def _run(self, segment: _Segment, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import onnxruntime

        options = make_session_options(onnxruntime)
        if self._bundle.manifest.target.operator_library:
            options.register_custom_ops_library(os.fspath(require_library()))
        options.add_session_config_entry(_FOLDER_ENTRY, os.fspath(self._bundle.path.absolute()))
        options.enable_cpu_mem_arena = False
        # Each part runs once. Without optimizer and prepacking, the weights stay in the mapped file
        # until they are used, and are neither converted nor copied to another layout.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = onnxruntime.InferenceSession(
                segment.model, options, providers=["CPUExecutionProvider"]
            )
            return self._run_bound(session.io_binding(), session, segment, values)
        except Exception as error:  # ONNX Runtime raises many pybind classes with no common base
            raise EngineError(f"ONNX Runtime failed in a part of the graph: {error}") from error

    def _run_bound(
        self, binding: Any, session: Any, segment: _Segment, values: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Runs a part with the cache in numpy arrays of uint16, because numpy has no bfloat16."""
        presents = {
            names.present_name(*place): np.empty_like(values[names.past_name(*place)])
            for place in self._cache
            if names.present_name(*place) in segment.outputs
        }
        inputs = {name: values[name] for name in segment.inputs}
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, presents)):
            for name, array in arrays.items():
                dtype = BFLOAT16 if array.dtype == np.uint16 else array.dtype.type
                bind(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
        others = [name for name in segment.outputs if name not in presents]
        for name in others:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[len(presents) :]
        return presents | {name: out.numpy() for name, out in zip(others, outputs, strict=True)}


def _split(model: ir.Model, segment_bytes: int) -> list[_Segment]:
    """Cuts a graph, whose nodes are in topological order, into parts of limited weights."""
    for node in list(model.graph):
        _divide(model.graph, node, segment_bytes // 2)
    parts: list[list[ir.Node]] = [[]]
    size_bytes = 0
    for node in model.graph:
        node_bytes = _count_weight_bytes(node)
        if parts[-1] and size_bytes + node_bytes > segment_bytes:
            parts.append([])
            size_bytes = 0
        parts[-1].append(node)
        size_bytes += node_bytes
    return [_make_segment(model, part) for part in parts]


def _divide(graph: ir.Graph, node: ir.Node, most_bytes: int) -> None:
    """Replaces a large product by several, each with some rows of its transposed weight.

    ONNX Runtime converts a whole half precision weight before it multiplies: an unembedding of
    250 MiB then needs 750 MiB.
    """
    if node.op_type != "Gemm" or len(node.inputs) != 2 or node.inputs[1] is None:
        return
    whole = node.inputs[1].const_value
    is_transposed = node.attributes.get_int("transB", 0)
    if not isinstance(whole, ir.ExternalTensor) or not is_transposed or whole.nbytes <= most_bytes:
        return
    num_rows, num_columns = whole.shape.numpy()
    row_bytes = whole.nbytes // num_rows
    step = max(1, most_bytes // row_bytes)
    old, pieces = node.outputs[0], []
    for start in range(0, num_rows, step):
        rows = min(step, num_rows - start)
        tensor = ir.ExternalTensor(
            whole.location,
            (whole.offset or 0) + start * row_bytes,
            rows * row_bytes,
            whole.dtype,
            shape=ir.Shape([rows, num_columns]),
            name=f"{whole.name}.{start}",
            base_dir=whole.base_dir,
        )
        kind = ir.TensorType(tensor.dtype)
        weight = ir.Value(name=tensor.name, type=kind, shape=tensor.shape, const_value=tensor)
        graph.register_initializer(weight)
        product = ir.node("Gemm", [node.inputs[0], weight], node.attributes)
        result = product.outputs[0]
        result.name, result.type = f"{tensor.name}.product", old.type
        pieces.append(product)
    joined = ir.node("Concat", [piece.outputs[0] for piece in pieces], {"axis": -1})
    graph.insert_before(node, [*pieces, joined])
    take_over(old, joined.outputs[0])
    graph.remove(node, safe=True)


def _count_weight_bytes(node: ir.Node) -> int:
    """Bytes of memory for a node's weights, dequantized as ONNX Runtime keeps them in a part."""
    tensors = [value.const_value for value in node.inputs if value is not None]
    dtype = node.outputs[0].dtype
    if node.op_type == "DequantizeLinear" and tensors[0] is not None and dtype is not None:
        return int(tensors[0].size * dtype.itemsize)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _make_segment(model: ir.Model, nodes: list[ir.Node]) -> _Segment:
    inside = set(nodes)
    made = [value for node in nodes for value in node.outputs]
    inputs = {
        value: None
        for node in nodes
        for value in node.inputs
        if value is not None and value.producer() not in inside and not value.is_initializer()
    }
    outputs = [
        value
        for value in made
        if value.is_graph_output() or any(user not in inside for user in value.consumers())
    ]
    graph = ir.convenience.extract(model.graph, list(inputs), outputs)
    part = ir.Model(graph, ir_version=model.ir_version, producer_name="medusa-trt")
    return _Segment(
        ir.to_proto(part).SerializeToString(),
        tuple(value.name or "" for value in inputs),
        tuple(value.name or "" for value in outputs),
    )
