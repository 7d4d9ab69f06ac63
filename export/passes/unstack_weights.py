"""The pass that splits stacked weights into single matrices, without reading them."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import add_initializer, bypass
from medusa_trt.export.weights.lazy_tensor import select_matrix


class UnstackWeightsPass(NodePass[int]):
    """Replaces the Gather of one matrix out of a stack, as of experts, by that matrix.

    It is a Gather with a constant scalar index along the first axis of a weight with three
    dimensions.
    """

    def match(self, node: ir.Node) -> int | None:
        """Number of the matrix that a Gather takes out of a stack of weights."""
        if node.op_type != "Gather" or node.domain != "" or (node.attributes.get_int("axis") or 0):
            return None
        stack, index = node.inputs
        if stack is None or stack.const_value is None or len(stack.const_value.shape) != 3:
            return None
        number = None if index is None else ir.convenience.get_const_tensor(index)
        return int(number.numpy()) if number is not None and len(number.shape) == 0 else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: int) -> None:
        stack = node.inputs[0]
        assert stack is not None and stack.const_value is not None
        matrix = select_matrix(stack.const_value, match)
        bypass(node, add_initializer(graph, f"{stack.name}.{match}", matrix))
        if not stack.uses() and stack.name is not None:
            del graph.initializers[stack.name]
