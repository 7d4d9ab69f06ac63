"""The forms of the reduce graph by name; a target's row says which one is used."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from medusa_trt.export.graphs.float_reduce import make_float_reduce
from medusa_trt.export.graphs.integer_reduce import make_integer_reduce
from medusa_trt.export.graphs.operator_reduce import make_operator_reduce

REDUCE_FORMS: Mapping[str, Callable[[int, int], ir.Model]] = {
    "operator": make_operator_reduce,
    "float64": make_float_reduce,
    "int64": make_integer_reduce,
}
"""Each function takes the vocabulary's size and the opset, and makes the reduce graph."""
