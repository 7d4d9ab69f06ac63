"""Stacked weights as one each, without reading them."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.export.passes.rewiring import bypass, initializer
from medusa_trt.export.weights.lazy_tensor import selected


class UnstackWeightsPass(InPlacePass):
    """Replaces the Gather of one matrix out of a stack, as of experts, by that matrix.

    Ensures: no Gather with a constant scalar index along the first axis of a weight with three
    dimensions remains.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Takes each matrix out of its stack."""
        modified = False
        for node in list(model.graph):
            if (
                node.op_type != "Gather"
                or node.domain != ""
                or (node.attributes.get_int("axis") or 0)
            ):
                continue
            stack, index = node.inputs
            if stack is None or stack.const_value is None or len(stack.const_value.shape) != 3:
                continue
            place = None if index is None else ir.convenience.get_const_tensor(index)
            if place is None or place.size != 1 or len(place.shape) != 0:
                continue
            number = int(place.numpy())
            matrix = selected(stack.const_value, number)
            bypass(node, initializer(model.graph, f"{stack.name}.{number}", matrix))
            if not stack.uses() and stack.name is not None:
                del model.graph.initializers[stack.name]
            modified = True
        return PassResult(model, modified)
