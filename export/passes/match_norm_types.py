"""Normalizations whose input and weight have one type."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass


class MatchNormTypesPass(NodePass[ir.DataType]):
    """Casts the input of an `RMSNormalization` to its weight's type.

    The standard allows two types, as of a float16 model that scales in float32 (Gemma), but
    ONNX Runtime 1.31 then makes a graph that it refuses itself. Nothing is lost: the input is
    widened, as the operator does inside.
    """

    def match(self, node: ir.Node) -> ir.DataType | None:
        """The type of the weight, where the input has another one."""
        if node.op_type != "RMSNormalization" or node.domain != "":
            return None
        source, weight = node.inputs[:2]
        if source is None or weight is None or source.dtype == weight.dtype:
            return None
        return weight.dtype

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.DataType) -> None:
        """Inserts a cast."""
        source = node.inputs[0]
        assert source is not None
        cast = ir.Node("", "Cast", [source], [ir.AttrInt64("to", int(match))])
        wide = cast.outputs[0]
        wide.name, wide.shape = f"{node.outputs[0].name}.input", source.shape
        wide.type = ir.TensorType(match)
        graph.insert_before(node, cast)
        node.replace_input_with(0, wide)
