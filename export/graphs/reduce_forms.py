"""The forms of the reduce graph by name; a target's row says which one is used."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from medusa_trt.export.graphs.float_reduce import make_float_reduce
from medusa_trt.export.graphs.integer_reduce import make_integer_reduce
from medusa_trt.export.graphs.reduce_interface import declare_outputs, make_inputs
from medusa_trt.runtime.engines.operators import DOMAIN


def make_operator_reduce(vocab_size: int, opset: int) -> ir.Model:
    """Makes the reduce graph as one node, the operator library's `Reduce`.

    Every row is covered, because the nucleus is found among all tokens. At 0, `top_k` keeps all.
    """
    inputs = make_inputs(vocab_size, ir.DataType.DOUBLE)
    node = ir.Node(DOMAIN, "Reduce", inputs, num_outputs=4)
    declare_outputs(node.outputs)
    opsets = {"": opset, DOMAIN: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=opsets, name="reduce")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")


REDUCE_FORMS: Mapping[str, Callable[[int, int], ir.Model]] = {
    "operator": make_operator_reduce,
    "float64": make_float_reduce,
    "int64": make_integer_reduce,
}
"""Each function takes the vocabulary's size and the opset, and makes the reduce graph."""
