"""Transposed weights without reading them."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.weights.lazy_tensor import transposed


class FoldTransposePass(CheckedPass):
    """Replaces the Transpose of a weight by the transposed weight.

    A weight with other uses, such as a tied unembedding, keeps its Transpose: it is stored once,
    and transposed where it is loaded.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Folds each."""
        modified = False
        for node in list(model.graph):
            weight = _weight_of(node)
            if weight is not None:
                _fold(model.graph, node, weight)
                modified = True
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each Transpose of a weight that nothing else uses."""
        return (node for node in graph if _weight_of(node) is not None)


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The weight that a Transpose alone uses."""
    weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    return weight if len(weight.uses()) == 1 else None


def _fold(graph: ir.Graph, transpose: ir.Node, weight: ir.Value) -> None:
    assert weight.const_value is not None and weight.name is not None
    rank = len(weight.const_value.shape)
    default = list(reversed(range(rank)))
    axes = transpose.attributes["perm"].as_ints() if "perm" in transpose.attributes else default
    output = transpose.outputs[0]
    tensor = transposed(weight.const_value, list(axes)).named(f"{weight.name}.transposed")
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.sizes),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    output.replace_all_uses_with(value)
    graph.remove(transpose, safe=True)
    if not weight.uses():
        del graph.initializers[weight.name]
