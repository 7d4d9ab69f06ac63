"""Removes transposes and reshapes that undo each other."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import bypass, same_known_shape


class RemoveLayoutPairsPass(CheckedPass):
    """Takes out Transpose-Transpose and Reshape-Reshape pairs that give their input back.

    A Reshape to the shape that its input has goes too. What makes a graph output stays.
    """

    reads_in_order = True
    reads_shapes_of = ("Transpose", "Reshape")

    def call(self, model: ir.Model) -> PassResult:
        """One walk is enough: before each node there are no pairs left."""
        modified = False
        for node in list(model.graph):
            source = _source_before_pair(node)
            if source is not None:
                bypass(node, source)
                modified = True
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds the second node of each pair."""
        return (node for node in graph if _source_before_pair(node) is not None)


def _source_before_pair(node: ir.Node) -> ir.Value | None:
    """What the node gives back, if it undoes the node before it."""
    if node.domain != "" or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Transpose":
        return _before_transposes(node)
    return _before_reshapes(node) if node.op_type == "Reshape" else None


def _before_transposes(second: ir.Node) -> ir.Value | None:
    first = _producer(second)
    if first is None or (inner := _permutation(first)) is None:
        return None
    outer = _permutation(second)
    if outer is None or [inner[axis] for axis in outer] != list(range(len(inner))):
        return None
    return first.inputs[0]


def _before_reshapes(second: ir.Node) -> ir.Value | None:
    first = _producer(second)
    for source in (second.inputs[0], None if first is None else first.inputs[0]):
        if same_known_shape(source, second.outputs[0]):
            return source
    return None


def _producer(node: ir.Node) -> ir.Node | None:
    """The node before, if it is of the same kind."""
    value = node.inputs[0]
    first = None if value is None else value.producer()
    return first if first is not None and first.op_identifier() == node.op_identifier() else None


def _permutation(transpose: ir.Node) -> list[int] | None:
    """Without the attribute, ONNX reverses the axes."""
    if "perm" in transpose.attributes:
        return list(transpose.attributes["perm"].as_ints())
    shape = transpose.outputs[0].shape
    return None if shape is None else list(reversed(range(len(shape))))
