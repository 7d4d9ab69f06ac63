"""Selecting the largest of bfloat16 numbers as float32."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

_OP_TYPES = ("ArgMax", "TopK")


class WidenSelectionPass(InPlacePass):
    """Casts what `ArgMax` and `TopK` read from bfloat16 to float32, which changes no choice.

    `TopK` takes bfloat16 from opset 24 on, and ONNX Runtime's CUDA provider has no such `ArgMax`.
    Requires: the values of `TopK` are not used. Ensures: no selection reads bfloat16.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Widens each selection's input."""
        found = [node for node in model.graph if node.op_type in _OP_TYPES and _is_narrow(node)]
        for node in found:
            source = node.inputs[0]
            assert source is not None
            cast = ir.Node(
                "",
                "Cast",
                [source],
                [ir.AttrInt64("to", int(ir.DataType.FLOAT))],
                name=f"{node.name}.widen",
            )
            wide = cast.outputs[0]
            wide.name, wide.shape = f"{source.name}.wide", source.shape
            wide.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.insert_before(node, cast)
            node.replace_input_with(0, wide)
            if node.op_type == "TopK":
                assert not node.outputs[0].uses()
                node.outputs[0].type = wide.type
        return PassResult(model, bool(found))


def _is_narrow(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype == ir.DataType.BFLOAT16
