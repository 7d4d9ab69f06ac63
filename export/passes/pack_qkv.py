"""The pass that packs three products before attention into one."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import add_initializer, find_product_weight, read_constant
from medusa_trt.export.weights.lazy_tensor import LazyTensor, concatenate_tensors

OP_TYPES = ("GroupQueryAttention", "TreeAttention")


class PackQkvPass(NodePass["list[_Projection]"]):
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

    def match(self, node: ir.Node) -> "list[_Projection] | None":
        """Three projections that can be packed."""
        if node.op_type not in OP_TYPES:
            return None
        projections = [
            projection
            for value in node.inputs[:3]
            if (projection := _find_projection(value)) is not None
        ]
        sources = {id(projection.source) for projection in projections}
        return projections if len(projections) == 3 and len(sources) == 1 else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: "list[_Projection]") -> None:
        node.replace_input_with(0, _pack(graph, match))
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)


@dataclass(frozen=True, slots=True)
class _Projection:
    """`source` times `weight` (in, out) plus `bias` (out,)."""

    product: ir.Node
    source: ir.Value
    weight: LazyTensor
    bias: ir.TensorProtocol | None


def _find_projection(value: ir.Value | None) -> _Projection | None:
    node = None if value is None else value.producer()
    bias = None
    if node is not None and node.op_type == "Add":
        product, bias = node.inputs[0], read_constant(node.inputs[1])
        if bias is None or len(bias.shape) != 1:
            return None
        node = None if product is None else product.producer()
    if node is None or node.op_type != "MatMul" or node.inputs[0] is None:
        return None
    weight = find_product_weight(node)
    if weight is None or (bias is not None and bias.shape[0] != weight.sizes[1]):
        return None
    return _Projection(node, node.inputs[0], weight, bias)


def _pack(graph: ir.Graph, projections: list[_Projection]) -> ir.Value:
    first = projections[0]
    weight = concatenate_tensors([projection.weight for projection in projections], axis=1)
    nodes = [_make_node(graph, "MatMul", first.source, weight, first.product)]
    if any(projection.bias is not None for projection in projections):
        zeros = [np.zeros(p.weight.sizes[1], p.weight.dtype.numpy()) for p in projections]
        biases = [
            ir.tensor(zero) if projection.bias is None else projection.bias
            for projection, zero in zip(projections, zeros, strict=True)
        ]
        product = nodes[0].outputs[0]
        nodes.append(
            _make_node(graph, "Add", product, concatenate_tensors(biases, axis=0), first.product)
        )
    graph.insert_before(first.product, nodes)
    return nodes[-1].outputs[0]


def _make_node(
    graph: ir.Graph, op_type: str, source: ir.Value, tensor: LazyTensor, origin: ir.Node
) -> ir.Node:
    """Makes a node of `source` and a new initializer, named after the node that it replaces."""
    kind = "weight" if op_type == "MatMul" else "bias"
    constant = add_initializer(graph, f"{origin.name}.packed_{kind}", tensor)
    node = ir.Node("", op_type, [source, constant])
    output = node.outputs[0]
    output.name = f"{origin.name}.packed_{op_type.lower()}"
    output.type = source.type
    if source.shape is not None:
        output.shape = ir.Shape([*source.shape[:-1], tensor.sizes[-1]])
    return node
