"""ArgMax and TopK over the last axis by the operator library."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import take_over
from medusa_trt.runtime.engines.operators import DOMAIN


class UseFastSelectionPass(NodePass[ir.Node]):
    """Rewrites ArgMax and TopK over the last axis to the operator library's.

    ONNX Runtime's ArgMax takes 0.7 ms for 8 rows of 49,152 logits. The pass rewrites an ArgMax of
    a float tensor that drops the last axis, a TopK whose values are not used, and a TopK of a
    LogSoftmax with its values.
    """

    reads_shapes_of = ("ArgMax", "TopK")
    domain = DOMAIN

    def match(self, node: ir.Node) -> ir.Node | None:
        """Operator of the library that makes the same selection."""
        value = node.inputs[0] if node.inputs else None
        if node.domain != "" or value is None or value.shape is None:
            return None
        if value.dtype != ir.DataType.FLOAT:
            return None
        attributes, last_axes = node.attributes, (-1, len(value.shape) - 1)
        if node.op_type == "ArgMax" and attributes.get_int("axis", 0) in last_axes:
            keepdims = attributes.get_int("keepdims", 1)
            last = attributes.get_int("select_last_index", 0)
            return None if keepdims or last else ir.Node(DOMAIN, "ArgMax", [value])
        if node.op_type == "TopK" and attributes.get_int("axis", -1) in last_axes:
            assert node.inputs[1] is not None
            count = ir.convenience.get_const_tensor(node.inputs[1])
            if count is None or not attributes.get_int("largest", 1):
                return None
            count_attribute = ir.AttrInt64("count", int(count.numpy().item()))
            values = node.outputs[0]
            if not values.uses() and not values.is_graph_output():
                return ir.Node(DOMAIN, "TopK", [value], [count_attribute])
            softmax = value.producer()
            if softmax is not None and softmax.op_type == "LogSoftmax":
                return ir.Node(
                    DOMAIN, "TopK", [softmax.inputs[0]], [count_attribute], num_outputs=2
                )
        return None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: ir.Node) -> None:
        graph.insert_before(node, match)
        for old, new in zip(reversed(node.outputs), match.outputs, strict=False):
            take_over(old, new)
        graph.remove(node, safe=True)
