"""The forms of the reduce graph by name; a target's row says which one is used."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from medusa_trt.export.graphs.float_reduce import float_reduce_graph
from medusa_trt.export.graphs.integer_reduce import integer_reduce_graph
from medusa_trt.export.graphs.operator_reduce import operator_reduce_graph

REDUCE_FORMS: Mapping[str, Callable[[int, int], ir.Model]] = {
    "operator": operator_reduce_graph,
    "float64": float_reduce_graph,
    "int64": integer_reduce_graph,
}
"""Each function takes the vocabulary's size and the opset, and makes the reduce graph."""
