"""One product instead of three before attention."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

OP_TYPES = ("GroupQueryAttention", "TreeAttention")


class PackQkvPass(InPlacePass):
    """Merges the query, key and value projections of `GroupQueryAttention` or `TreeAttention`.

    Requires: attention's first three inputs. Ensures: where all three are products of one value
    by constants, with or without a constant bias, attention reads their packed product; others
    are left alone.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Packs each attention node's projections."""
        modified = False
        for attention in list(model.graph):
            if attention.op_type not in OP_TYPES:
                continue
            projections = [_projection(value) for value in attention.inputs[:3]]
            found = [projection for projection in projections if projection is not None]
            if len(found) < 3 or len({id(projection.source) for projection in found}) > 1:
                continue
            attention.replace_input_with(0, _packed(model.graph, found))
            attention.replace_input_with(1, None)
            attention.replace_input_with(2, None)
            modified = True
        return PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class _Projection:
    """`source` times `weight` (in, out) plus `bias` (out,)."""

    product: ir.Node
    source: ir.Value
    weight: NDArray[np.generic]
    bias: NDArray[np.generic] | None


def _projection(value: ir.Value | None) -> _Projection | None:
    node = None if value is None else value.producer()
    bias = None
    if node is not None and node.op_type == "Add":
        product, bias = node.inputs[0], _constant(node.inputs[1])
        if bias is None or bias.ndim != 1:
            return None
        node = None if product is None else product.producer()
    if node is None or node.op_type != "MatMul" or node.inputs[0] is None:
        return None
    weight = _constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or (bias is not None and len(bias) != weight.shape[1]):
        return None
    return _Projection(node, node.inputs[0], weight, bias)


def _packed(graph: ir.Graph, projections: list[_Projection]) -> ir.Value:
    first = projections[0]
    weights = [projection.weight for projection in projections]
    biases = [
        np.zeros(p.weight.shape[1], p.weight.dtype) if p.bias is None else p.bias
        for p in projections
    ]
    nodes = [_node(graph, "MatMul", first.source, np.concatenate(weights, axis=1), first.product)]
    if any(projection.bias is not None for projection in projections):
        product = nodes[0].outputs[0]
        nodes.append(_node(graph, "Add", product, np.concatenate(biases), first.product))
    graph.insert_before(first.product, nodes)
    return nodes[-1].outputs[0]


def _node(
    graph: ir.Graph, op_type: str, source: ir.Value, array: NDArray[np.generic], origin: ir.Node
) -> ir.Node:
    """An operator on `source` and a new initializer, named after the node it stems from."""
    kind = "weight" if op_type == "MatMul" else "bias"
    tensor = ir.tensor(array, name=f"{origin.name}.packed_{kind}")
    constant = ir.Value(
        name=tensor.name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(constant)
    node = ir.Node("", op_type, [source, constant])
    output = node.outputs[0]
    output.name = f"{origin.name}.packed_{op_type.lower()}"
    output.type = source.type
    if source.shape is not None:
        output.shape = ir.Shape([*source.shape[:-1], array.shape[-1]])
    return node


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()
