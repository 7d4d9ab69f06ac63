"""What a step cannot be faster than: reading its weights once, and its multiplications.

Both are measured, not looked up. The bandwidth floor is the time of a plain sum over as many bytes
as the verify graph's products and the KV cache have, with the same threads, in the same rounds as
the steps. The arithmetic floor is the best time of the graph's own operator on a matrix that stays
in the core's cache, times how much larger the graph's matrices are; attention is not in it.
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

from medusa_trt.export.quantization.library import quantized_weight
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import DOMAIN, required_library

_NUM_INPUTS, _NUM_OUTPUTS, _FEW_OUTPUTS = 576, 1024, 16
_OPSET, _ROUNDS = 23, 30


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of a verify graph.

    Attributes:
        size_bytes: of their weights with scales, each of which is read once a step.
        multiply_adds: for one row, by the bits of the weights.
    """

    size_bytes: int
    multiply_adds: dict[int, int]


def products_of(bundle: Bundle) -> Products:
    """Counts the products of a bundle's verify graph."""
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


def reading(size_bytes: int, threads: int) -> Callable[[], object]:
    """Sums that many bytes with `threads` threads."""
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.sum, parts))


class ArithmeticFloor:
    """Times of a bundle's products without the wait for memory."""

    def __init__(self, products: Products, threads: int) -> None:
        self._products, self._threads = products, threads

    def ms(self, num_rows: int) -> float:
        """Milliseconds for all products of a step over `num_rows` nodes."""
        total = 0.0
        for bits, multiply_adds in self._products.multiply_adds.items():
            whole, few = (
                best_ms(_product(bits, num_outputs, num_rows, self._threads))
                for num_outputs in (_NUM_OUTPUTS, _FEW_OUTPUTS)
            )
            measured = _NUM_INPUTS * (_NUM_OUTPUTS - _FEW_OUTPUTS)
            total += max(0.0, whole - few) * multiply_adds / measured
        return total


def best_ms(action: Callable[[], object]) -> float:
    """The best time of several, in milliseconds."""
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def _product(bits: int, num_outputs: int, num_rows: int, threads: int) -> Callable[[], object]:
    """A product of one matrix as a session of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if bits < 32:
        options.register_custom_ops_library(os.fspath(required_library()))
    model = ir.to_proto(_product_model(bits, num_outputs)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rows = np.random.default_rng(0).normal(size=(num_rows, _NUM_INPUTS)).astype(np.float32)
    output = np.zeros((num_rows, num_outputs), np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)
    kept = rows, output  # the binding only knows their addresses

    def run() -> object:
        session.run_with_iobinding(binding)
        return kept

    return run


def _product_model(bits: int, num_outputs: int) -> ir.Model:
    weight = np.random.default_rng(1).normal(size=(_NUM_INPUTS, num_outputs)).astype(np.float32)
    tensors: dict[str, Any] = {"weight": weight}
    attributes: dict[str, Any] = {}
    if bits < 32:
        quantized = quantized_weight(weight, bits)
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
