"""Removes rotary embeddings by the angle zero."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.export.passes.rewiring import bypass, same_known_shape


class RemoveIdentityRotaryPass(InPlacePass):
    """Replaces `x * 1 + rotate_half(x) * 0` by `x`.

    Requires: the model was traced with a rotary module that returns constant ones and zeros, as
    it is where attention rotates by itself; shapes are annotated. Ensures: no such Add remains,
    except one that is a graph output.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Takes each such Add out."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Add" and not node.outputs[0].is_graph_output():
                source = _unrotated(node)
                if source is not None and same_known_shape(source, node.outputs[0]):
                    bypass(node, source)
                    modified = True
        return PassResult(model, modified)


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
