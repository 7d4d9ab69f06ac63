"""The pass that transposes weights at export, without reading them."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import add_initializer, bypass
from medusa_trt.export.weights.lazy_tensor import transpose_tensor


class FoldTransposePass(NodePass[ir.Value]):
    """Replaces the Transpose of a weight by the transposed weight.

    A weight with other uses, such as a tied unembedding, keeps its Transpose: it is stored once,
    and transposed where it is loaded.
    """

    def match(self, node: ir.Node) -> ir.Value | None:
        """Weight that a Transpose alone uses."""
        weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            return None
        return weight if len(weight.uses()) == 1 else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Value) -> None:
        assert match.const_value is not None and match.name is not None
        rank = len(match.const_value.shape)
        default = list(reversed(range(rank)))
        axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else default
        tensor = transpose_tensor(match.const_value, list(axes))
        bypass(node, add_initializer(graph, f"{match.name}.transposed", tensor))
        if not match.uses():
            del graph.initializers[match.name]
