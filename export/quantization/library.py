"""Weights in the form that the operator library's `Linear` reads (native/kernels/kernels.h)."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.export.quantization.exact_scales import find_exact_scales

LANES = 16
"""Outputs that are stored together."""

BLOCK_SIZES = {8: 64, 4: 32}
"""Inputs that share a scale, by bits."""

CODES = {8: (-127, 127), 4: (-8, 7)}
"""The smallest and the largest code, by bits."""

_INPUTS_MULTIPLE = 64
_PART_SIZE = 1 << 17
"""Weights that one thread rounds at a time: they stay in its cache."""

SHRINKS = np.linspace(1.0, 0.7, 13, dtype=np.float32)
"""Parts of the largest scale of a block that are tried at 4 bits."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight matrix of K inputs and N outputs.

    Attributes:
        data: (ceil(N / 16), K' * 16 * bits / 8) uint8, K' being K rounded up to 64.
        scales: (ceil(N / 16), K' / block, 16) float16.
        bits: 8 or 4.
        is_exact: whether it stands for exactly the values that it was made of.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float16]
    bits: int
    is_exact: bool = False


def quantize_weight(weight: NDArray[np.floating], bits: int) -> QuantizedWeight:
    """Rounds to nearest, symmetric at 8 bits; at 4 bits with the scale of least squared error.

    Blocks that need no rounding, see `find_exact_scales`, are stored as they are.

    Args:
        weight: (K, N), as `MatMul` has it, in any floating-point type.
        bits: 8 or 4.
    """
    num_inputs, num_outputs = weight.shape
    num_groups = -(-num_outputs // LANES)
    padded_inputs = _round_up(num_inputs, _INPUTS_MULTIPLE)
    data = np.empty((num_groups, padded_inputs * LANES * bits // 8), np.uint8)
    scales = np.empty((num_groups, padded_inputs // BLOCK_SIZES[bits], LANES), np.float16)
    part = max(1, _PART_SIZE // (padded_inputs * LANES))

    def quantize(first: int) -> bool:
        groups = slice(first, min(first + part, num_groups))
        outputs = weight[:, groups.start * LANES : groups.stop * LANES]
        padded = np.zeros(((groups.stop - groups.start) * LANES, padded_inputs), np.float32)
        padded[: outputs.shape[1], :num_inputs] = outputs.T
        data[groups], scales[groups], is_exact = _quantize_groups(padded, bits)
        return is_exact

    with ThreadPoolExecutor() as pool:
        are_exact = list(pool.map(quantize, range(0, num_groups, part)))
    return QuantizedWeight(data, scales, bits, all(are_exact))


def count_packed_bytes(num_inputs: int, num_outputs: int, bits: int) -> int:
    """Counts the bytes of a quantized (K, N) matrix with its scales."""
    num_stored = _round_up(num_inputs, _INPUTS_MULTIPLE) * _round_up(num_outputs, LANES)
    return num_stored * bits // 8 + num_stored // BLOCK_SIZES[bits] * 2


def _quantize_groups(
    padded: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], bool]:
    """Quantizes whole groups of outputs, one a row: data, scales, and whether it is exact."""
    blocks = padded.reshape(len(padded), -1, BLOCK_SIZES[bits])
    low, high = CODES[bits]
    exact = find_exact_scales(blocks, low, high, np.dtype(np.float16), negative=bits == 4)
    is_rounded = np.isnan(exact)
    scales = exact.astype(np.float16)
    if is_rounded.any():
        searched = np.abs(blocks).max(-1) / 127 if bits == 8 else _find_4_bit_scales(blocks)
        np.copyto(scales, searched.astype(np.float16), where=is_rounded)
    codes = np.empty_like(blocks)
    _round(blocks, _make_divisors(scales)[..., None], codes, bits)
    stored = (codes + (1 << (bits - 1))).astype(np.uint8)
    grouped = scales.reshape(len(scales) // LANES, LANES, -1).transpose(0, 2, 1)
    return _pack_codes(stored, bits), np.ascontiguousarray(grouped), not is_rounded.any()


def _pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Puts codes (outputs, blocks, block) of whole groups in the order of the operator."""
    groups = len(codes) // LANES
    # (group, k / 4, lane, k % 4): what one dot product instruction reads.
    ordered = codes.reshape(groups, LANES, -1, 4).transpose(0, 2, 1, 3)
    if bits == 4:
        pairs = ordered.reshape(groups, -1, 2, BLOCK_SIZES[bits] // 4 * LANES * 4)
        ordered = np.bitwise_or(pairs[:, :, 0], pairs[:, :, 1] << 4, dtype=np.uint8)
    return np.ascontiguousarray(ordered.reshape(groups, -1))


def dequantize_weight(
    quantized: QuantizedWeight, num_inputs: int, num_outputs: int
) -> NDArray[np.float32]:
    """Computes the (K, N) matrix that a quantized one stands for."""
    groups, bits = len(quantized.data), quantized.bits
    block = BLOCK_SIZES[bits]
    if bits == 8:
        codes = quantized.data.astype(np.float32) - 128
    else:
        pairs = quantized.data.reshape(groups, -1, 1, block // 4 * LANES * 4)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).astype(np.float32) - 8
    lanes = codes.reshape(groups, -1, LANES, 4).transpose(0, 2, 1, 3)
    blocks = lanes.reshape(groups, LANES, -1, block)
    scales = quantized.scales.astype(np.float32).transpose(0, 2, 1)
    weight = (blocks * scales[..., None]).reshape(groups * LANES, -1)
    return np.ascontiguousarray(weight[:num_outputs, :num_inputs].T)


def _find_4_bit_scales(blocks: NDArray[np.float32]) -> NDArray[np.float16]:
    """Searches scales that map the value of largest magnitude near -8 or 7; some are negative."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    best_scales = np.zeros(blocks.shape[:-1], np.float16)
    best_errors = np.full(blocks.shape[:-1], np.inf, np.float32)
    codes = np.empty_like(blocks)
    for shrink in SHRINKS:
        for sign in (-8, 7):
            scales = (largest / sign * shrink).astype(np.float16)
            divisors = _make_divisors(scales)[..., None]
            _round(blocks, divisors, codes, 4)
            codes *= divisors
            codes -= blocks
            errors = np.einsum("nbk,nbk->nb", codes, codes)
            better = errors < best_errors
            np.copyto(best_errors, errors, where=better)
            np.copyto(best_scales, scales, where=better)
    return best_scales


def _round(
    blocks: NDArray[np.float32],
    divisors: NDArray[np.float32],
    codes: NDArray[np.float32],
    bits: int,
) -> None:
    np.divide(blocks, divisors, out=codes)
    np.rint(codes, out=codes)
    np.clip(codes, *CODES[bits], out=codes)


def _make_divisors(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Returns the stored scales, with 1 in place of 0."""
    return np.where(scales == 0, 1, scales).astype(np.float32)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
