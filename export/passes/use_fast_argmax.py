"""ArgMax over the last axis by the operator library."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.runtime.operators import DOMAIN


class UseFastArgMaxPass(InPlacePass):
    """Rewrites ArgMax over the last axis, which is not kept, to the operator library's.

    ONNX Runtime's takes 0.7 ms for 8 rows of 49,152 logits. Requires: shapes are annotated.
    Ensures: no other such ArgMax of a float tensor remains.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replaces each."""
        found = [node for node in model.graph if _is_over_last(node)]
        for node in found:
            fast = ir.Node(DOMAIN, "ArgMax", [node.inputs[0]])
            old, new = node.outputs[0], fast.outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            model.graph.insert_before(node, fast)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(model, bool(found))


def _is_over_last(node: ir.Node) -> bool:
    value = node.inputs[0] if node.op_type == "ArgMax" and node.domain == "" else None
    if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return False
    axis = node.attributes.get_int("axis", 0)
    kept = node.attributes.get_int("keepdims", 1)
    last = node.attributes.get_int("select_last_index", 0)
    return axis in (-1, len(value.shape) - 1) and not kept and not last
