"""Weights of products behind `DequantizeLinear`, the standard form of weight quantization."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import add_initializer, find_product_weight, take_over
from medusa_trt.export.quantization.exact_scales import find_exact_scales
from medusa_trt.export.quantization.lazy_quantization import quantize_when_read
from medusa_trt.export.weight_formats import ChooseFormat, ReportStored, WeightFormat
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

_BLOCK_SIZES = (128, 64, 32, 16)

CODE_RANGES: dict[WeightFormat, tuple[float, float]] = {
    "int4": (-8.0, 7.0),
    "int8": (-127.0, 127.0),
    "fp8": (-448.0, 448.0),
}
"""The smallest and the largest code of each format."""

_CODE_TYPES = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}
INT4_SHRINKS = np.linspace(1.0, 0.75, 6, dtype=np.float32)
"""Parts of the largest scale of a block that are tried at int4."""

_COLUMNS = 64
_TRIED_COLUMNS = 16
"""Number of outputs that nearly always show whether blocks need no rounding."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix to quantize; `block_size` is None where each output has one scale."""

    weight: LazyTensor
    format: WeightFormat
    block_size: int | None


class QuantizeWeightsPass(NodePass[_Matrix]):
    """Puts constant matrices behind `DequantizeLinear`: quantized weights, float products.

    int4 has a scale for a block of inputs, int8 and fp8 (E4M3) one for each output. A matrix is
    quantized when it is read. It stays as it is without a format and, at int4, where no block size
    divides its inputs.
    """

    def __init__(
        self, choose_format: ChooseFormat, report_stored: ReportStored | None = None
    ) -> None:
        """Takes the functions that choose a matrix's format and are called when it is stored."""
        super().__init__()
        self._choose_format, self._report_stored = choose_format, report_stored

    def match(self, node: ir.Node) -> _Matrix | None:
        """Matrix of a product, with the format that it gets."""
        weight = find_product_weight(node)
        format_ = None if weight is None else self._choose_format(weight)
        if weight is None or format_ is None:
            return None
        block_size = find_largest_block_size(weight.sizes[0]) if format_ == "int4" else None
        if format_ == "int4" and block_size is None:
            return None
        return _Matrix(weight, format_, block_size)

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: _Matrix) -> None:
        weight, block_size = match.weight, match.block_size
        if match.format == "int4" and self._report_stored is not None:
            # The blocks of a quantized checkpoint may have another size.
            block_size = choose_block_size(weight.stored(), weight.dtype.numpy())
        codes, scales = _quantize_later(weight, match.format, block_size, self._report_stored)
        name = node.name or str(node.outputs[0].name)
        dequantize = ir.Node(
            "",
            "DequantizeLinear",
            [
                add_initializer(graph, f"{name}.codes", codes),
                add_initializer(graph, f"{name}.scales", scales),
            ],
            [ir.AttrInt64("axis", 1)]
            if block_size is None
            else [ir.AttrInt64("axis", 0), ir.AttrInt64("block_size", block_size)],
            name=f"{name}.dequantize",
        )
        dequantized = dequantize.outputs[0]
        dequantized.name, dequantized.shape = f"{name}.weight", ir.Shape(weight.sizes)
        dequantized.type = ir.TensorType(weight.dtype)
        graph.insert_before(node, dequantize)
        _multiply_by(graph, node, dequantized)


def find_largest_block_size(num_inputs: int) -> int | None:
    """Finds how many inputs share a scale at int4; None where no block size divides them."""
    return next((size for size in _BLOCK_SIZES if num_inputs % size == 0), None)


def choose_block_size(weight: Array, dtype: np.dtype[Any]) -> int | None:
    """Chooses the block size of a weight (K, N) at int4.

    It is the largest that holds the weight as it is, else `find_largest_block_size`.
    """
    tried = weight[:, :_TRIED_COLUMNS].astype(np.float32)
    for size in _BLOCK_SIZES:
        if (
            len(weight) % size == 0
            and not np.isnan(_find_exact_scales(tried, "int4", size, dtype)).any()
        ):
            return size
    return find_largest_block_size(len(weight))


def dequantize_matrix(codes: Array, scales: Array) -> NDArray[np.float32]:
    """Computes the (K, N) matrix that the result of `quantize_matrix` stands for."""
    wide = codes.astype(np.float32)
    blocks = wide.reshape(len(scales) if scales.ndim == 2 else 1, -1, wide.shape[1])
    matrix: NDArray[np.float32] = blocks * scales.astype(np.float32).reshape(len(blocks), 1, -1)
    return matrix.reshape(wide.shape)


def quantize_matrix(
    weight: Array,
    format_: WeightFormat,
    block_size: int | None,
    dtype: np.dtype[Any] | None = None,
) -> tuple[Array, Array]:
    """Codes (K, N) and scales of a weight (K, N), of which blocks need no rounding or are rounded.

    Blocks that need no rounding (see `find_exact_scales`) are stored as they are. At 4 bits the
    scales of the others are those of the least squared error among some that clip.

    Args:
        weight: the matrix, of any floating-point type.
        format_: format of the codes.
        block_size: inputs that share a scale; None for one scale for each output.
        dtype: type of the scales, to which values are rounded first; by default the weight's.

    Returns:
        The codes; scales (K / block_size, N) with blocks, (N,) without.
    """
    num_inputs, num_outputs = weight.shape
    kind = weight.dtype if dtype is None else dtype
    codes = np.empty(weight.shape, _CODE_TYPES[format_].numpy())
    scales = np.empty((num_inputs // (block_size or num_inputs), num_outputs), kind)

    def quantize(columns: slice) -> None:
        codes[:, columns], scales[:, columns] = _quantize_columns(
            weight[:, columns], format_, block_size, kind
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(quantize, _split_outputs(num_outputs)))
    return codes, scales if block_size else scales[0]


def _split_outputs(num_outputs: int) -> Iterator[slice]:
    """Splits the outputs into parts whose temporary arrays stay in the processor's cache."""
    return (slice(start, start + _COLUMNS) for start in range(0, num_outputs, _COLUMNS))


def _is_exact(weight: Array, codes: Array, scales: Array) -> bool:
    """Whether codes and scales stand for exactly the values of a weight."""
    return all(
        np.array_equal(
            dequantize_matrix(codes[:, columns], scales[..., columns]),
            weight[:, columns].astype(np.float32),
        )
        for columns in _split_outputs(weight.shape[1])
    )


def _quantize_later(
    weight: LazyTensor,
    format_: WeightFormat,
    block_size: int | None,
    report_stored: ReportStored | None,
) -> tuple[LazyTensor, LazyTensor]:
    """Makes codes and scales of a weight."""

    def quantize() -> tuple[Array, Array]:
        array = weight.stored()
        codes, scales = quantize_matrix(array, format_, block_size, weight.dtype.numpy())
        if report_stored is not None:
            report_stored(weight, _is_exact(array, codes, scales))
        return codes, scales

    num_inputs, num_outputs = weight.sizes
    shape = (num_inputs // block_size, num_outputs) if block_size else (num_outputs,)
    return quantize_when_read(
        quantize,
        (weight.sizes, _CODE_TYPES[format_]),
        (shape, weight.dtype),
        (format_, block_size, weight.dtype, weight.key),
    )


def _quantize_columns(
    weight: Array, format_: WeightFormat, block_size: int | None, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Codes (K, n) and scales (K / block_size or 1, n) of some outputs."""
    exact = _find_exact_scales(weight, format_, block_size, dtype)[:, None]
    is_rounded = np.isnan(exact)
    shape = len(exact), -1, weight.shape[1]
    blocks = weight.astype(dtype).astype(np.float32).reshape(shape)
    scales = _search_scales(blocks, format_, dtype)
    if not is_rounded.all():
        blocks = np.where(is_rounded, blocks, weight.astype(np.float32).reshape(shape))
        scales = np.where(is_rounded, scales, _round_scales(exact, dtype))
    scaled = (blocks / scales).reshape(weight.shape)
    if format_ != "fp8":
        scaled = np.rint(scaled)
    codes = scaled.clip(*CODE_RANGES[format_])
    return codes.astype(_CODE_TYPES[format_].numpy()), scales[:, 0].astype(dtype)


def _find_exact_scales(
    weight: Array, format_: WeightFormat, block_size: int | None, dtype: np.dtype[Any]
) -> NDArray[np.float32]:
    """Finds scales (K / block_size or 1, n), NaN where a block has to be rounded."""
    num_blocks = len(weight) // (block_size or len(weight))
    if format_ == "fp8":
        return np.full((num_blocks, weight.shape[1]), np.nan, np.float32)
    blocks = weight.astype(np.float32).reshape(num_blocks, -1, weight.shape[1])
    low, high = map(int, CODE_RANGES[format_])
    return find_exact_scales(np.moveaxis(blocks, 1, -1), low, high, dtype)


def _search_scales(
    blocks: NDArray[np.float32], format_: WeightFormat, dtype: np.dtype[Any]
) -> NDArray[np.float32]:
    """Searches scales (blocks, 1, n) for blocks (blocks, block, n)."""
    largest = np.abs(blocks).max(1, keepdims=True) / CODE_RANGES[format_][1]
    best = _round_scales(largest, dtype)
    if format_ == "int4":
        best_error = np.full(largest.shape, np.inf, np.float32)
        for shrink in INT4_SHRINKS:
            scales = _round_scales(largest * shrink, dtype)
            codes = np.rint(blocks / scales).clip(*CODE_RANGES[format_])
            error = np.square(codes * scales - blocks).sum(1, keepdims=True)
            best = np.where(error < best_error, scales, best)
            best_error = np.minimum(best_error, error)
    return best


def _round_scales(scales: Array, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Returns the stored scales, with 1 in place of 0."""
    stored = scales.astype(dtype).astype(np.float32)
    return np.where(stored == 0, np.float32(1), stored)


def _multiply_by(graph: ir.Graph, product: ir.Node, weight: ir.Value) -> None:
    """Replaces a product by a MatMul with another weight, and an Add of its bias if any."""
    old = product.outputs[0]
    nodes = [ir.Node("", "MatMul", [product.inputs[0], weight], name=product.name)]
    nodes[0].outputs[0].type = old.type
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        nodes.append(ir.Node("", "Add", [nodes[0].outputs[0], product.inputs[2]]))
    nodes[0].outputs[0].name = f"{old.name}.product"
    graph.insert_before(product, nodes)
    take_over(old, nodes[-1].outputs[0])
    graph.remove(product, safe=True)
