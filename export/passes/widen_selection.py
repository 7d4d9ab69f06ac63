"""The pass that lets `ArgMax` and `TopK` read bfloat16 numbers as float32."""

import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import cast_input

_OP_TYPES = ("ArgMax", "TopK")


class WidenSelectionPass(NodePass[ir.Value]):
    """Casts what `ArgMax` and `TopK` read from bfloat16 to float32, which changes no choice.

    `TopK` takes bfloat16 from opset 24 on, and ONNX Runtime's CUDA provider has no such `ArgMax`.
    """

    def requires(self, model: ir.Model) -> None:
        """Checks that nothing reads the values of a `TopK` whose type changes.

        Raises:
            PreconditionError: something does.
        """
        super().requires(model)
        for node in self.find_left_over(model.graph):
            if node.op_type == "TopK" and node.outputs[0].uses():
                raise PreconditionError(
                    f"{type(self).__name__} changes the type of the values of TopK {node.name!r}, "
                    "which are used"
                )

    def match(self, node: ir.Node) -> ir.Value | None:
        """Bfloat16 numbers that a selection reads."""
        source = node.inputs[0] if node.op_type in _OP_TYPES else None
        return source if source is not None and source.dtype == ir.DataType.BFLOAT16 else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Value) -> None:
        cast_input(graph, node, ir.DataType.FLOAT)
        if node.op_type == "TopK":
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
