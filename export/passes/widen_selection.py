"""Selecting the largest of bfloat16 numbers as float32."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult, PreconditionError

from medusa_trt.export.passes.checked_pass import CheckedPass

_OP_TYPES = ("ArgMax", "TopK")


class WidenSelectionPass(CheckedPass):
    """Casts what `ArgMax` and `TopK` read from bfloat16 to float32, which changes no choice.

    `TopK` takes bfloat16 from opset 24 on, and ONNX Runtime's CUDA provider has no such `ArgMax`.
    """

    def requires(self, model: ir.Model) -> None:
        """Checks that nothing reads the values of a `TopK` whose type changes.

        Raises:
            PreconditionError: something does.
        """
        super().requires(model)
        for node in self.left_over(model.graph):
            if node.op_type == "TopK" and node.outputs[0].uses():
                raise PreconditionError(
                    f"{type(self).__name__} changes the type of the values of TopK {node.name!r}, "
                    "which are used"
                )

    def call(self, model: ir.Model) -> PassResult:
        """Widens each selection's input."""
        selections = list(self.left_over(model.graph))
        for node in selections:
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
                node.outputs[0].type = wide.type
        return PassResult(model, bool(selections))

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each selection among bfloat16 numbers."""
        for node in graph:
            source = node.inputs[0] if node.op_type in _OP_TYPES else None
            if source is not None and source.dtype == ir.DataType.BFLOAT16:
                yield node
