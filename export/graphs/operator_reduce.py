"""The reduce graph as one node, the operator library's `Reduce`."""

import onnx_ir as ir

from medusa_trt.export.graphs.reduce_interface import declare_outputs, make_inputs
from medusa_trt.runtime.engines.operators import DOMAIN


def make_operator_reduce(vocab_size: int, opset: int) -> ir.Model:
    """Makes the reduce graph for the operator library; see `make_float_reduce`.

    Every row is covered, because the nucleus is found among all tokens. At 0, `top_k` keeps all.
    """
    inputs = make_inputs(vocab_size, ir.DataType.DOUBLE)
    node = ir.Node(DOMAIN, "Reduce", inputs, num_outputs=4)
    declare_outputs(node.outputs)
    opsets = {"": opset, DOMAIN: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=opsets, name="reduce")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")
