"""One product instead of three before attention."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult, PreconditionError

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import constant_of, initializer
from medusa_trt.export.weights.lazy_tensor import LazyTensor, concatenated

OP_TYPES = ("GroupQueryAttention", "TreeAttention")


class PackQkvPass(CheckedPass):
    """Merges the query, key and value projections of `GroupQueryAttention` or `TreeAttention`.

    Where all three are products of one value by constants, with or without a constant bias,
    attention reads their packed product; others are left alone.
    """

    def requires(self, model: ir.Model) -> None:
        """Checks that attention has places for queries, keys and values.

        Raises:
            PreconditionError: an attention node has fewer than three inputs.
        """
        super().requires(model)
        for node in model.graph:
            if node.op_type in OP_TYPES and len(node.inputs) < 3:
                raise PreconditionError(
                    f"{type(self).__name__} reads three inputs of {node.op_type} {node.name!r}, "
                    f"which has {len(node.inputs)}"
                )

    def call(self, model: ir.Model) -> PassResult:
        """Packs each attention node's projections."""
        modified = False
        for attention in list(model.graph):
            projections = _projections_of(attention)
            if projections is None:
                continue
            attention.replace_input_with(0, _packed(model.graph, projections))
            attention.replace_input_with(1, None)
            attention.replace_input_with(2, None)
            modified = True
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each attention node whose projections can be packed."""
        return (node for node in graph if _projections_of(node) is not None)


@dataclass(frozen=True, slots=True)
class _Projection:
    """`source` times `weight` (in, out) plus `bias` (out,)."""

    product: ir.Node
    source: ir.Value
    weight: ir.TensorProtocol
    bias: ir.TensorProtocol | None


def _projections_of(attention: ir.Node) -> list[_Projection] | None:
    """The three projections that can be packed."""
    if attention.op_type not in OP_TYPES:
        return None
    projections = [
        projection
        for value in attention.inputs[:3]
        if (projection := _projection(value)) is not None
    ]
    sources = {id(projection.source) for projection in projections}
    return projections if len(projections) == 3 and len(sources) == 1 else None


def _projection(value: ir.Value | None) -> _Projection | None:
    node = None if value is None else value.producer()
    bias = None
    if node is not None and node.op_type == "Add":
        product, bias = node.inputs[0], constant_of(node.inputs[1])
        if bias is None or len(bias.shape) != 1:
            return None
        node = None if product is None else product.producer()
    if node is None or node.op_type != "MatMul" or node.inputs[0] is None:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        return None
    if bias is not None and bias.shape[0] != weight.shape[1]:
        return None
    return _Projection(node, node.inputs[0], weight, bias)


def _packed(graph: ir.Graph, projections: list[_Projection]) -> ir.Value:
    first = projections[0]
    weight = concatenated([projection.weight for projection in projections], axis=1)
    nodes = [_node(graph, "MatMul", first.source, weight, first.product)]
    if any(projection.bias is not None for projection in projections):
        biases = [_bias_or_zeros(projection) for projection in projections]
        product = nodes[0].outputs[0]
        nodes.append(_node(graph, "Add", product, concatenated(biases, axis=0), first.product))
    graph.insert_before(first.product, nodes)
    return nodes[-1].outputs[0]


def _bias_or_zeros(projection: _Projection) -> ir.TensorProtocol:
    if projection.bias is not None:
        return projection.bias
    num_outputs, dtype = projection.weight.shape.numpy()[1], projection.weight.dtype.numpy()
    return ir.tensor(np.zeros(num_outputs, dtype))


def _node(
    graph: ir.Graph, op_type: str, source: ir.Value, tensor: LazyTensor, origin: ir.Node
) -> ir.Node:
    """An operator on `source` and a new initializer, named after the node it stems from."""
    kind = "weight" if op_type == "MatMul" else "bias"
    constant = initializer(graph, f"{origin.name}.packed_{kind}", tensor)
    node = ir.Node("", op_type, [source, constant])
    output = node.outputs[0]
    output.name = f"{origin.name}.packed_{op_type.lower()}"
    output.type = source.type
    if source.shape is not None:
        output.shape = ir.Shape([*source.shape[:-1], tensor.sizes[-1]])
    return node
