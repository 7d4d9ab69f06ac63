"""Transposed weights without reading them."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.export.weights.lazy_tensor import transposed


class FoldTransposePass(InPlacePass):
    """Replaces the Transpose of a weight by the transposed weight.

    Ensures: no Transpose of an initializer remains, except where the weight has other uses, as a
    tied unembedding has: it is stored once, and transposed where it is loaded.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Folds each."""
        modified = False
        for node in list(model.graph):
            weight = node.inputs[0] if node.op_type == "Transpose" else None
            if weight is None or not weight.is_initializer() or weight.const_value is None:
                continue
            if node.domain != "" or len(list(weight.uses())) > 1:
                continue
            _fold(model.graph, node, weight)
            modified = True
        return PassResult(model, modified)


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
