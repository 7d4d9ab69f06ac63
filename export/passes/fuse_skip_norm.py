"""Residual addition and normalization in one operator."""

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import have_same_shape, take_over


class FuseSkipNormPass(NodePass[ir.Node]):
    """Rewrites Add + RMSNormalization to `com.microsoft.SkipSimplifiedLayerNormalization`.

    ONNX Runtime 1.31 fuses an older form but not the RMSNormalization of opset 23. Fused is an
    Add of two values of one shape that feeds a normalization over the last of two or three axes,
    except where either is a graph output.
    """

    reads_shapes_of = ("Add",)
    domain = "com.microsoft"

    def match(self, node: ir.Node) -> ir.Node | None:
        """Add that can be fused into a normalization."""
        if node.op_type != "RMSNormalization" or node.inputs[0] is None:
            return None
        add = node.inputs[0].producer()
        if add is None or add.op_type != "Add" or add.domain != "":
            return None
        weight, total = node.inputs[1], add.outputs[0]
        if total.is_graph_output() or node.outputs[0].is_graph_output():
            return None
        if not all(have_same_shape(value, total) for value in add.inputs):
            return None
        assert total.shape is not None
        rank = len(total.shape)
        over_last = node.attributes.get_int("axis", -1) in (-1, rank - 1)
        one_weight = weight is not None and weight.shape is not None and len(weight.shape) == 1
        return add if over_last and one_weight and rank in (2, 3) else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Node) -> None:
        """Fuses a pair; the sum stays available as the fused operator's fourth output."""
        fused = ir.Node(
            "com.microsoft",
            "SkipSimplifiedLayerNormalization",
            [match.inputs[0], match.inputs[1], node.inputs[1]],
            [ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))],
            num_outputs=4,
        )
        graph.insert_before(node, fused)
        for index, old in ((0, node.outputs[0]), (3, match.outputs[0])):
            take_over(old, fused.outputs[index])
        for unused in fused.outputs[1:3]:
            unused.name = ""
        graph.remove([node, match], safe=True)

    def call(self, model: ir.Model) -> PassResult:
        """Fuses each pair, and puts the nodes in order again."""
        result = super().call(model)
        if result.modified:
            model.graph.sort()
        return result
