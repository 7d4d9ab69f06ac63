"""Runs one operator of the library in ONNX Runtime."""

import ctypes
import os
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from medusa_trt.runtime.engines.operators import DOMAIN, require_library

Array = NDArray[Any]

KERNELS = ("portable", "avx2", "avx-vnni", "avx512-vnni", "amx", "neon-dotprod", "neon-i8mm")


def session(
    op_type: str,
    inputs: list[str],
    outputs: dict[str, int],
    feeds: dict[str, Array],
    constants: dict[str, Array],
    **attributes: Any,
) -> ort.InferenceSession:
    """One node as a model; `outputs` gives each output's element type."""
    node = helper.make_node(op_type, inputs, list(outputs), domain=DOMAIN, **attributes)
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
        )
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(
        [node],
        "one",
        values,
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.fspath(require_library()))
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def run_bound(
    model: ort.InferenceSession, feeds: dict[str, Array], outputs: dict[str, Array]
) -> None:
    """Runs a model on arrays of any type, bfloat16 too, writing into `outputs`."""
    binding = model.io_binding()
    for bind, arrays in ((binding.bind_input, feeds), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
    model.run_with_iobinding(binding)


def kernels_here() -> list[str]:
    """Those that this processor runs."""
    function = ctypes.CDLL(os.fspath(require_library())).medusa_trt_kernel_names
    function.restype = ctypes.c_char_p
    names: bytes = function()
    return names.decode().split()


def run_graph(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """Runs a whole graph with the library's operators."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.fspath(require_library()))
    proto = ir.to_proto(model).SerializeToString()
    outputs: list[Array] = ort.InferenceSession(proto, options).run(None, feeds)
    return outputs
