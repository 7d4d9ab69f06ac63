"""Weights of products behind `DequantizeLinear`, the standard form of weight quantization."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.export.exact_scales import exact_scales
from medusa_trt.export.lazy_tensor import LazyTensor, lazy, transposed
from medusa_trt.export.weight_formats import FormatOf, WeightFormat

_BLOCK_SIZES = (128, 64, 32, 16)
_MAX_CODE = {"int4": 7.0, "int8": 127.0, "fp8": 448.0}
_CODE_TYPES = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}
_SHRINKS = np.linspace(1.0, 0.75, 6, dtype=np.float32)
_COLUMNS = 64

Array = NDArray[Any]


class QuantizeWeightsPass(InPlacePass):
    """Puts constant matrices behind `DequantizeLinear`: quantized weights, float products.

    int4 has a scale for a block of inputs, int8 and fp8 (E4M3) one for each output. Requires:
    products of two dimensions or more by constant matrices, in the type that is to be computed in.
    Ensures: each such matrix is quantized, when it is read; except those without a format and, at
    int4, those whose inputs no block size divides.
    """

    def __init__(self, format_of: FormatOf) -> None:
        """Takes the format of each matrix."""
        super().__init__()
        self._format_of = format_of

    def call(self, model: ir.Model) -> PassResult:
        """Quantizes each weight."""
        products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
        modified = [self._quantized(model.graph, node) for node in products]
        return PassResult(model, any(modified))

    def _quantized(self, graph: ir.Graph, product: ir.Node) -> bool:
        tensor = _weight_of(product)
        format_ = None if tensor is None else self._format_of(tensor)
        if tensor is None or format_ is None:
            return False
        block_size = block_size_of(tensor.sizes[0]) if format_ == "int4" else None
        if format_ == "int4" and block_size is None:
            return False
        codes, scales = _quantized_later(tensor, format_, block_size)
        name = product.name or str(product.outputs[0].name)
        dequantize = ir.Node(
            "",
            "DequantizeLinear",
            [
                _initializer(graph, f"{name}.codes", codes),
                _initializer(graph, f"{name}.scales", scales),
            ],
            [ir.AttrInt64("axis", 1)]
            if block_size is None
            else [ir.AttrInt64("axis", 0), ir.AttrInt64("block_size", block_size)],
            name=f"{name}.dequantize",
        )
        dequantized = dequantize.outputs[0]
        dequantized.name, dequantized.shape = f"{name}.weight", ir.Shape(tensor.sizes)
        dequantized.type = ir.TensorType(tensor.dtype)
        graph.insert_before(product, dequantize)
        _multiply_by(graph, product, dequantized)
        return True


def block_size_of(num_inputs: int) -> int | None:
    """Inputs that share a scale at int4; None where no block size divides them."""
    return next((size for size in _BLOCK_SIZES if num_inputs % size == 0), None)


def dequantized_matrix(codes: Array, scales: Array) -> NDArray[np.float32]:
    """The (K, N) matrix that the result of `quantized_matrix` stands for."""
    wide = codes.astype(np.float32)
    blocks = wide.reshape(len(scales) if scales.ndim == 2 else 1, -1, wide.shape[1])
    matrix: NDArray[np.float32] = blocks * scales.astype(np.float32).reshape(len(blocks), 1, -1)
    return matrix.reshape(wide.shape)


def quantized_matrix(
    weight: Array, format_: WeightFormat, block_size: int | None
) -> tuple[Array, Array]:
    """Codes (K, N) and scales of a weight (K, N), in the weight's own type.

    Scales are (K / block_size, N) with blocks, (N,) without. At 4 bits each is the one of the
    least squared error among some that clip.
    """
    num_inputs, num_outputs = weight.shape
    codes = np.empty(weight.shape, _CODE_TYPES[format_].numpy())
    scales = np.empty((num_inputs // (block_size or num_inputs), num_outputs), weight.dtype)

    def quantize(start: int) -> None:
        # Some outputs at a time, whose temporaries stay in the processor's cache.
        some = slice(start, start + _COLUMNS)
        codes[:, some], scales[:, some] = _quantized_columns(weight[:, some], format_, block_size)

    with ThreadPoolExecutor() as pool:
        list(pool.map(quantize, range(0, num_outputs, _COLUMNS)))
    return codes, scales if block_size else scales[0]


def _quantized_later(
    weight: LazyTensor, format_: WeightFormat, block_size: int | None
) -> tuple[LazyTensor, LazyTensor]:
    """Codes and scales of a weight, quantized once for both if they are read in this order."""
    done: list[Array] = []

    def quantized() -> tuple[Array, Array]:
        array = np.asarray(weight.stored(), weight.dtype.numpy())
        return quantized_matrix(array, format_, block_size)

    def read_codes() -> Array:
        codes, scales = quantized()
        done[:] = [scales]
        return codes

    num_inputs, num_outputs = weight.sizes
    shape = (num_inputs // block_size, num_outputs) if block_size else (num_outputs,)
    key = format_, block_size, weight.dtype, weight.key
    return (
        LazyTensor(read_codes, weight.sizes, ("codes", key), _CODE_TYPES[format_]),
        LazyTensor(
            lambda: done.pop() if done else quantized()[1], shape, ("scales", key), weight.dtype
        ),
    )


def _quantized_columns(
    weight: Array, format_: WeightFormat, block_size: int | None
) -> tuple[Array, Array]:
    """Codes (K, n) and scales (K / block_size or 1, n) of some outputs."""
    wide = weight.astype(np.float32)
    blocks = wide.reshape(-1, block_size or len(wide), wide.shape[1])
    limit = _MAX_CODE[format_]
    largest = np.abs(blocks).max(1, keepdims=True) / limit
    best = _stored(largest, weight.dtype)
    if format_ == "int4":
        best_error = np.full(largest.shape, np.inf, np.float32)
        for shrink in _SHRINKS:
            scales = _stored(largest * shrink, weight.dtype)
            codes = np.rint(blocks / scales).clip(-limit - 1, limit)
            error = np.square(codes * scales - blocks).sum(1, keepdims=True)
            best = np.where(error < best_error, scales, best)
            best_error = np.minimum(best_error, error)
    scaled = (blocks / best).reshape(wide.shape)
    if format_ != "fp8":
        scaled = np.rint(scaled)
    codes = scaled.clip(-limit - 1 if format_ == "int4" else -limit, limit)
    return codes.astype(_CODE_TYPES[format_].numpy()), best[:, 0].astype(weight.dtype)


def _stored(scales: Array, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """The scales as they are stored, 1 in place of 0."""
    stored = scales.astype(dtype).astype(np.float32)
    return np.where(stored == 0, np.float32(1), stored)


def _weight_of(product: ir.Node) -> LazyTensor | None:
    """The (inputs, outputs) matrix of a product by a constant."""
    value = product.inputs[1]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    weight = lazy(value.const_value)
    if product.op_type == "MatMul":
        return weight
    attributes = product.attributes
    if attributes.get_int("transA", 0) or any(
        attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")
    ):
        return None
    return transposed(weight) if attributes.get_int("transB", 0) else weight


def _multiply_by(graph: ir.Graph, product: ir.Node, weight: ir.Value) -> None:
    """Lets a product take another weight, as a MatMul and, of a Gemm's bias, an Add."""
    old = product.outputs[0]
    nodes = [ir.Node("", "MatMul", [product.inputs[0], weight], name=product.name)]
    nodes[0].outputs[0].type = old.type
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        nodes.append(ir.Node("", "Add", [nodes[0].outputs[0], product.inputs[2]]))
    new = nodes[-1].outputs[0]
    nodes[0].outputs[0].name = f"{old.name}.product"
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(product, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def _initializer(graph: ir.Graph, name: str, tensor: LazyTensor) -> ir.Value:
    tensor = tensor.named(name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.sizes),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
