"""Which blocks need no rounding, against grids that the tests make."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medusa_trt.export.quantization import library as quantize
from medusa_trt.export.quantization import quantize_weights
from medusa_trt.export.quantization.exact_scales import find_exact_scales
from medusa_trt.export.quantization.library import dequantize_weight, quantize_weight
from medusa_trt.export.quantization.quantize_weights import (
    choose_block_size,
    dequantize_matrix,
    quantize_matrix,
)
from medusa_trt.export.weight_formats import WeightFormat

Floats = NDArray[np.float32]
HALF = np.dtype(np.float16)
FORMATS = {"int4": (-8, 7), "int8": (-127, 127)}

formats = st.sampled_from(sorted(FORMATS))
seeds = st.integers(0, 1 << 32)


def random_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Half-precision numbers of very different sizes."""
    exponents = rng.uniform(-20, 4, shape)
    return np.exp2(exponents).astype(np.float16).astype(np.float32)


def grid_matrix(
    rng: np.random.Generator, codes: tuple[int, int], block: int, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Codes (K, N), scales (K / block, N) and the matrix (K, N)."""
    integers = rng.integers(codes[0], codes[1] + 1, shape)
    scales = random_scales(rng, (shape[0] // block, shape[1]))
    return integers, scales, (integers * scales.repeat(block, 0)).astype(np.float32)


@given(formats, seeds, st.integers(1, 70), st.booleans())
def test_every_grid_is_found(format_: str, seed: int, size: int, negative: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = FORMATS[format_]
    sign = -1 if negative else 1
    codes = rng.integers(low, high + 1, (3, 5, size))
    codes[rng.random(codes.shape) < rng.random()] = 0
    true = sign * random_scales(rng, (3, 5))
    blocks = (codes * true[..., None]).astype(np.float32)
    found = find_exact_scales(blocks, low, high, HALF, negative=True)
    assert not np.isnan(found).any()
    assert ((found == 0) == ~codes.any(-1)).all()
    again = np.rint(blocks / np.where(found == 0, 1, found)[..., None])
    assert (again >= low).all() and (again <= high).all()
    assert (again * found[..., None] == blocks).all()
    assert (np.float16(found) == found).all()
    # Where all codes have a common divisor, theirs are smaller.
    assert (np.abs(again).max(-1) <= np.abs(codes).max(-1)).all()
    is_positive = ((sign * codes >= low) & (sign * codes <= high)).all(-1)
    expected = np.where(is_positive, np.abs(true), true)
    one_step = np.gcd.reduce(codes, -1) == 1
    assert (found == expected)[one_step].all()


@given(formats, seeds, st.integers(1, 8))
def test_a_value_beside_the_grid_is_noticed(format_: str, seed: int, ulps: int) -> None:
    """One value off by some units in its last place, and the block is none of a grid."""
    rng = np.random.default_rng(seed)
    low, high = FORMATS[format_]
    codes = rng.integers(low, high + 1, (6, 32))
    codes[:, :2] = 1, -3
    blocks = (codes * random_scales(rng, (6, 1))).astype(np.float32)
    place = rng.integers(32)
    for _ in range(ulps):
        blocks[:, place] = np.nextafter(blocks[:, place], np.float32(np.inf))
    assert np.isnan(find_exact_scales(blocks, low, high, HALF, negative=True)).all()


def test_only_scales_that_the_format_holds_are_found() -> None:
    odd = np.float32(1 + 2**-12)
    blocks = np.outer([odd, 1], np.arange(-7, 8)).astype(np.float32)
    found = find_exact_scales(blocks, -8, 7, HALF)
    assert np.isnan(found[0]) and found[1] == 1
    assert find_exact_scales(blocks, -8, 7, np.dtype(np.float32))[0] == odd
    # A block of one value, whose own size has too many bits: a fifth of it has not.
    scale = np.float32(1 + 2**-10)
    single = np.zeros((1, 32), np.float32)
    single[0, 9] = -5 * scale
    assert find_exact_scales(single, -8, 7, HALF)[0] == scale
    # Nine steps are too many.
    assert np.isnan(find_exact_scales(np.array([[1, 9]], np.float32), -8, 7, HALF)[0])
    # Eight are not, on the side of the sign.
    eight = np.array([[1, 8], [1, -8]], np.float32)
    assert np.isnan(find_exact_scales(eight, -8, 7, HALF)).tolist() == [True, False]
    assert find_exact_scales(eight, -8, 7, HALF, negative=True).tolist() == [-1, 1]
    strange = np.array([[np.nan, 1], [np.inf, 1], [1e30, 3e30]], np.float32)
    assert np.isnan(find_exact_scales(strange, -8, 7, HALF)).all()


@given(formats, seeds, st.integers(1, 3), st.integers(1, 40))
def test_the_library_stores_grids_as_they_are(
    format_: str, seed: int, num_blocks: int, num_outputs: int
) -> None:
    block = 32 if format_ == "int4" else 64
    shape = block * num_blocks, num_outputs
    matrix = grid_matrix(np.random.default_rng(seed), FORMATS[format_], block, shape)[2]
    stored = quantize_weight(matrix, 4 if format_ == "int4" else 8)
    assert stored.is_exact
    assert np.array_equal(dequantize_weight(stored, *shape), matrix)


@given(seeds, st.sampled_from((16, 32, 64, 128)), st.integers(1, 20))
def test_devices_store_grids_as_they_are(seed: int, block: int, num_outputs: int) -> None:
    rng = np.random.default_rng(seed)
    codes, scales, _ = grid_matrix(rng, (-8, 7), block, (256, num_outputs))
    codes[::16] = 1  # so that no other scale is possible
    codes[1::16] = -8
    matrix = (codes * scales.repeat(block, 0)).astype(np.float32)
    assert choose_block_size(matrix, HALF) == block
    found = quantize_matrix(matrix, "int4", block, HALF)
    assert np.array_equal(found[0].astype(int), codes) and np.array_equal(found[1], scales)
    assert np.array_equal(dequantize_matrix(*found), matrix)
    column = grid_matrix(rng, (-127, 127), 256, (256, num_outputs))[2]
    assert np.array_equal(dequantize_matrix(*quantize_matrix(column, "int8", None, HALF)), column)


def test_of_a_mixed_matrix_only_the_others_are_rounded() -> None:
    rng = np.random.default_rng(0)
    matrix = grid_matrix(rng, (-8, 7), 32, (128, 48))[2]
    matrix[32:64] = rng.normal(size=(32, 48))
    stored = quantize_weight(matrix, 4)
    values = dequantize_weight(stored, 128, 48)
    same = (values == matrix).reshape(4, 32, 48).all(1)
    assert not stored.is_exact and same.tolist() == [[place != 1] * 48 for place in range(4)]
    alone = dequantize_weight(quantize_weight(matrix[32:64], 4), 32, 48)
    assert np.array_equal(values[32:64], alone)


def no_grid(blocks: Floats, *args: Any, **options: Any) -> Floats:
    return np.full(blocks.shape[:-1], np.nan, np.float32)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_other_matrices_are_rounded_as_if_there_were_no_grids(
    format_: WeightFormat, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1024, 256)).astype(np.float32) / 50
    if kind == "bfloat16":
        matrix = (matrix.view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif kind == "float16":
        matrix = matrix.astype(np.float16).astype(np.float32)
    bits = 4 if format_ == "int4" else 8
    block = choose_block_size(matrix, HALF) if format_ == "int4" else None
    library = quantize_weight(matrix, bits)
    device = quantize_matrix(matrix, format_, block, HALF)
    monkeypatch.setattr(quantize, "find_exact_scales", no_grid)
    monkeypatch.setattr(quantize_weights, "find_exact_scales", no_grid)
    expected = quantize_weight(matrix, bits)
    assert not library.is_exact and np.array_equal(library.data, expected.data)
    assert library.scales.tobytes() == expected.scales.tobytes()
    for found, old in zip(
        device, quantize_matrix(matrix.astype(HALF), format_, block), strict=True
    ):
        assert found.tobytes() == old.tobytes()
