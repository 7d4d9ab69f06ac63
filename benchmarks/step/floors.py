"""Lower bounds of a step's time: reading the weights once, and computing the matrix products.

Both are measured. The bandwidth floor is the time to sum as many bytes as the weights and the KV
cache have, with the same threads and in the same rounds as the steps. For the arithmetic floor, the
operator that the graph uses multiplies a matrix that stays in the core's cache; its best time is
scaled to the size of the graph's matrices. Attention is not included.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from medusa_trt.export.quantization.library import quantize_weight
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import DOMAIN, require_library

_NUM_INPUTS, _NUM_OUTPUTS, _FEW_OUTPUTS = 576, 1024, 16
"""Sizes of the two matrices that are timed. The time of the one with few outputs is subtracted
from the time of the other, which removes the fixed cost of a call."""

_OPSET, _ROUNDS = 23, 30


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of a verify graph.

    Attributes:
        size_bytes: size of the weights and scales, which a step reads once.
        multiply_adds: multiply-adds for one row, by the bits of the weights.
    """

    size_bytes: int
    multiply_adds: dict[int, int]


def read_products(bundle: Bundle) -> Products:
    """Counts the matrix products of a bundle's verify graph."""
    graph = ir.load(bundle.graph_path("verify")).graph
    size_bytes, multiply_adds = 0, Counter[int]()
    for node in graph:
        if node.op_type not in ("Linear", "LinearChain", "MatMul", "Gemm"):
            continue
        constants = [None if value is None else value.const_value for value in node.inputs]
        size_bytes += sum(tensor.nbytes for tensor in constants if tensor is not None)
        is_chain = node.op_type == "LinearChain"
        for i in range(node.attributes.get_int("num_layers", 1)):
            weight = constants[2 + 4 * i if is_chain else 1]
            bits = node.attributes.get_int(f"bits{i}" if is_chain else "bits", 32)
            if weight is not None:
                multiply_adds[bits] += weight.nbytes * 8 // bits
    return Products(size_bytes, dict(multiply_adds))


def make_reader(size_bytes: int, threads: int) -> Callable[[], object]:
    """Makes a function that reads and sums `size_bytes` bytes of memory with `threads` threads."""
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.sum, parts))


class ArithmeticFloor:
    """Measures how long a bundle's matrix products take when the weights are in the CPU cache."""

    def __init__(self, products: Products, threads: int) -> None:
        self._products, self._threads = products, threads

    def measure_ms(self, num_rows: int) -> float:
        """Measures all products of a step over `num_rows` nodes, in milliseconds."""
        total_ms = 0.0
        for bits, multiply_adds in self._products.multiply_adds.items():
            large_ms, small_ms = (
                _time_best_ms(_make_product(bits, num_outputs, num_rows, self._threads))
                for num_outputs in (_NUM_OUTPUTS, _FEW_OUTPUTS)
            )
            num_timed = _NUM_INPUTS * (_NUM_OUTPUTS - _FEW_OUTPUTS)
            total_ms += max(0.0, large_ms - small_ms) * multiply_adds / num_timed
        return total_ms


def _time_best_ms(action: Callable[[], object]) -> float:
    times_ms = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        action()
        times_ms.append(1e3 * (time.perf_counter() - start))
    return min(times_ms)


def _make_product(bits: int, num_outputs: int, num_rows: int, threads: int) -> Callable[[], object]:
    """Makes a function that multiplies by one matrix, in an ONNX Runtime session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if bits < 32:
        options.register_custom_ops_library(os.fspath(require_library()))
    model = ir.to_proto(_product_model(bits, num_outputs)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rows = np.random.default_rng(0).normal(size=(num_rows, _NUM_INPUTS)).astype(np.float32)
    output = np.zeros((num_rows, num_outputs), np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)
    arrays = rows, output

    def run() -> object:
        session.run_with_iobinding(binding)
        return arrays  # This reference keeps them in memory: the binding holds only addresses.

    return run


def _product_model(bits: int, num_outputs: int) -> ir.Model:
    weight = np.random.default_rng(1).normal(size=(_NUM_INPUTS, num_outputs)).astype(np.float32)
    tensors: dict[str, Any] = {"weight": weight}
    attributes: dict[str, Any] = {}
    if bits < 32:
        quantized = quantize_weight(weight, bits)
        tensors = {"weight": quantized.data, "scales": quantized.scales}
        attributes = {"bits": bits, "num_outputs": num_outputs}
        attributes |= {"activation": 0, "gated": 0, "epsilon": 0.0}
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape(["num_rows", _NUM_INPUTS]))
    constants = [
        ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in tensors.items()
    ]
    domain, op_type = (DOMAIN, "Linear") if bits < 32 else ("", "MatMul")
    node = ir.node(op_type, [x, *constants], attributes, domain=domain)
    (y,) = node.outputs
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["num_rows", num_outputs])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=constants, opset_imports={"": _OPSET, DOMAIN: 1}
    )
    return ir.Model(graph, ir_version=10)
