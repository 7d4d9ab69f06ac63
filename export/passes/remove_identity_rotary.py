"""Removes rotary embeddings by the angle zero."""

import numpy as np
import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import bypass, have_same_shape


class RemoveIdentityRotaryPass(NodePass[ir.Value]):
    """Replaces `x * 1 + rotate_half(x) * 0` by `x`.

    Such nodes come from `IdentityRotary`, which replaces the model's rotary module where attention
    itself rotates. An Add that is a graph output stays.
    """

    reads_shapes_of = ("Add",)

    def match(self, node: ir.Node) -> ir.Value | None:
        """Value that can replace an Add."""
        if node.op_type != "Add" or node.outputs[0].is_graph_output():
            return None
        source = _unrotated(node)
        return source if have_same_shape(source, node.outputs[0]) else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Value) -> None:
        """Takes the Add out."""
        bypass(node, match)


def _unrotated(add: ir.Node) -> ir.Value | None:
    products = [value.producer() if value is not None else None for value in add.inputs]
    direct, rotated = products
    if direct is None or rotated is None or {direct.op_type, rotated.op_type} != {"Mul"}:
        return None
    if _is_filled(direct.inputs[1], 1) and _is_filled(rotated.inputs[1], 0):
        return direct.inputs[0]
    return None


def _is_filled(value: ir.Value | None, number: float) -> bool:
    if value is None or value.const_value is None:
        return False
    return bool(np.all(value.const_value.numpy() == number))
