"""Removes rotary embeddings whose angle is zero, which change nothing."""

import numpy as np
import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import bypass, have_same_shape


class RemoveIdentityRotaryPass(NodePass[ir.Value]):
    """Replaces `x * 1 + rotate_half(x) * 0` by `x`.

    Such nodes come from `IdentityRotary`. It replaces the model's rotary module where the attention
    operator applies the rotary embedding. An Add that is a graph output stays.
    """

    reads_shapes_of = ("Add",)

    def match(self, node: ir.Node) -> ir.Value | None:
        """Finds the `x` that can replace an Add; None for another node."""
        if node.op_type != "Add" or node.outputs[0].is_graph_output():
            return None
        direct, rotated = (value.producer() if value is not None else None for value in node.inputs)
        if direct is None or rotated is None or {direct.op_type, rotated.op_type} != {"Mul"}:
            return None
        if not _is_filled(direct.inputs[1], 1) or not _is_filled(rotated.inputs[1], 0):
            return None
        source = direct.inputs[0]
        return source if have_same_shape(source, node.outputs[0]) else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Value) -> None:
        bypass(node, match)


def _is_filled(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant whose elements all equal a number."""
    if value is None or value.const_value is None:
        return False
    return bool(np.all(value.const_value.numpy() == number))
