"""Stacked weights as one each, without reading them."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import bypass, initializer
from medusa_trt.export.weights.lazy_tensor import selected


class UnstackWeightsPass(CheckedPass):
    """Replaces the Gather of one matrix out of a stack, as of experts, by that matrix.

    It is a Gather with a constant scalar index along the first axis of a weight with three
    dimensions.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Takes each matrix out of its stack."""
        modified = False
        for node in list(model.graph):
            number = _selected_number(node)
            if number is None:
                continue
            stack = node.inputs[0]
            assert stack is not None and stack.const_value is not None
            matrix = selected(stack.const_value, number)
            bypass(node, initializer(model.graph, f"{stack.name}.{number}", matrix))
            if not stack.uses() and stack.name is not None:
                del model.graph.initializers[stack.name]
            modified = True
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each such Gather."""
        return (node for node in graph if _selected_number(node) is not None)


def _selected_number(node: ir.Node) -> int | None:
    """The number of the matrix that a Gather takes out of a stack of weights."""
    if node.op_type != "Gather" or node.domain != "" or (node.attributes.get_int("axis") or 0):
        return None
    stack, index = node.inputs
    if stack is None or stack.const_value is None or len(stack.const_value.shape) != 3:
        return None
    number = None if index is None else ir.convenience.get_const_tensor(index)
    return int(number.numpy()) if number is not None and len(number.shape) == 0 else None
