"""Removes transposes and reshapes that undo each other."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class RemoveLayoutPairsPass(InPlacePass):
    """Rewires Transpose-Transpose and Reshape-Reshape pairs that give their input back.

    Requires: shapes are annotated. Ensures: the pairs around attention are unused.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Transposes first, since they stand between the reshapes."""
        modified = False
        for op_type, undoes in (("Transpose", _transposes_back), ("Reshape", _reshapes_back)):
            for second in model.graph:
                first = _producer(second) if _is(second, op_type) else None
                if first is None or not _is(first, op_type) or not undoes(first, second):
                    continue
                if (source := first.inputs[0]) is not None:
                    second.outputs[0].replace_all_uses_with(source)
                    modified = True
        return PassResult(model, modified)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain == ""


def _producer(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    return None if value is None else value.producer()


def _transposes_back(first: ir.Node, second: ir.Node) -> bool:
    inner = first.attributes["perm"].as_ints()
    outer = second.attributes["perm"].as_ints()
    return [inner[axis] for axis in outer] == list(range(len(inner)))


def _reshapes_back(first: ir.Node, second: ir.Node) -> bool:
    source = first.inputs[0]
    return (
        source is not None
        and source.shape is not None
        and (source.shape == second.outputs[0].shape)
    )
