"""The pass that casts the input of a normalization to the type of its weight."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import cast_input


class MatchNormTypesPass(NodePass[ir.DataType]):
    """Casts the input of an `RMSNormalization` to its weight's type.

    The standard allows two types, as of a float16 model that scales in float32 (Gemma), but
    ONNX Runtime 1.31 then makes a graph that it refuses itself. Nothing is lost: the input is
    widened, as the operator does inside.
    """

    def match(self, node: ir.Node) -> ir.DataType | None:
        """Type of the weight, where the input has another one."""
        if node.op_type != "RMSNormalization" or node.domain != "":
            return None
        source, weight = node.inputs[:2]
        if source is None or weight is None or source.dtype == weight.dtype:
            return None
        return weight.dtype

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.DataType) -> None:
        cast_input(graph, node, match)
