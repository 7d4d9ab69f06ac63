"""The reduce graph as one operator of our own."""

import onnx_ir as ir

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.operators import DOMAIN


def operator_reduce_graph(vocab_size: int, opset: int) -> ir.Model:
    """The reduce graph for the operator library; see `reduce_graph` for what it computes.

    Every row is covered: the nucleus is found among all tokens. `top_k` keeps all at 0.
    """
    rows: list[str | int] = ["num_rows"]
    inputs = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        for name, dtype, shape in (
            (names.LOGITS, ir.DataType.FLOAT, [*rows, vocab_size]),
            (names.CANDIDATES, ir.DataType.INT64, rows),
            (names.PARENT_ROWS, ir.DataType.INT64, rows),
            (names.UNIFORMS, ir.DataType.DOUBLE, rows),
            (names.TEMPERATURE, ir.DataType.FLOAT, [1]),
            (names.TOP_K, ir.DataType.INT64, [1]),
            (names.TOP_P, ir.DataType.FLOAT, [1]),
            (names.MIN_P, ir.DataType.FLOAT, [1]),
        )
    ]
    outputs = [
        ir.Value(name=name, shape=ir.Shape(rows), type=ir.TensorType(dtype))
        for name, dtype in (
            (names.SAMPLED, ir.DataType.INT64),
            (names.COVERED, ir.DataType.BOOL),
            (names.ENTROPY, ir.DataType.FLOAT),
            (names.CANDIDATE_LOGPROB, ir.DataType.FLOAT),
        )
    ]
    node = ir.Node(DOMAIN, "Reduce", inputs, outputs=outputs)
    opsets = {"": opset, DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="reduce")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")
