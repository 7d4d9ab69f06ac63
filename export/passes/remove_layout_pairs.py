"""Removes transposes and reshapes that undo each other."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import bypass, have_same_shape


class RemoveLayoutPairsPass(NodePass[ir.Value]):
    """Takes out Transpose-Transpose and Reshape-Reshape pairs that give their input back.

    A Reshape to the shape that its input has goes too. What makes a graph output stays.
    """

    reads_in_order = True
    reads_shapes_of = ("Transpose", "Reshape")

    def match(self, node: ir.Node) -> ir.Value | None:
        """Value that a node restores, if it undoes the node before it."""
        if node.domain != "" or node.outputs[0].is_graph_output():
            return None
        if node.op_type == "Transpose":
            return _find_before_transposes(node)
        return _find_before_reshapes(node) if node.op_type == "Reshape" else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Value) -> None:
        """Takes the second node of a pair out; before it there are no pairs left."""
        bypass(node, match)


def _find_before_transposes(second: ir.Node) -> ir.Value | None:
    first = _find_same_producer(second)
    if first is None or (inner := _read_permutation(first)) is None:
        return None
    outer = _read_permutation(second)
    if outer is None or [inner[axis] for axis in outer] != list(range(len(inner))):
        return None
    return first.inputs[0]


def _find_before_reshapes(second: ir.Node) -> ir.Value | None:
    first = _find_same_producer(second)
    for source in (second.inputs[0], None if first is None else first.inputs[0]):
        if have_same_shape(source, second.outputs[0]):
            return source
    return None


def _find_same_producer(node: ir.Node) -> ir.Node | None:
    """Finds the node before, if it has the same operator."""
    value = node.inputs[0]
    first = None if value is None else value.producer()
    return first if first is not None and first.op_identifier() == node.op_identifier() else None


def _read_permutation(transpose: ir.Node) -> list[int] | None:
    """Reads the order of the axes; without the attribute, ONNX reverses them."""
    if "perm" in transpose.attributes:
        return list(transpose.attributes["perm"].as_ints())
    shape = transpose.outputs[0].shape
    return None if shape is None else list(reversed(range(len(shape))))
