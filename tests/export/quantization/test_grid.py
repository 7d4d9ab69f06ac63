"""The values that a rounded matrix can hold, and the codes and scales of a matrix of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_trt.export.quantization.grid import (
    Floats,
    Grid,
    RoundedMatrix,
    matrix_from_values,
)
from medusa_trt.export.quantization.library import dequantize_weight, quantize_weight
from medusa_trt.export.quantization.quantize_weights import dequantize_matrix, quantize_matrix
from medusa_trt.export.quantization.rounding import LibraryRounding, StandardRounding
from medusa_trt.export.weight_formats import BITS, WeightFormat


def random_values(grid: Grid, num_inputs: int, num_outputs: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    shape = num_outputs, grid.count_blocks(num_inputs)
    scales = rng.uniform(0.001, 0.1, shape).astype(np.float16)
    scales[rng.random(shape) < 0.1] = 0
    if grid.is_signed:
        scales *= rng.choice([-1, 1], shape).astype(np.float16)
    codes = rng.integers(grid.low, grid.high + 1, (num_outputs, num_inputs)).astype(np.int8)
    return RoundedMatrix(codes=codes, scales=scales, block_size=grid.block_size).compute_values()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([48, 64, 130]),
    st.integers(1, 20),
    st.sampled_from(["int4", "int8"]),
    st.integers(0, 999),
)
def test_the_library_stores_values_of_its_grid_as_they_are(
    num_inputs: int, num_outputs: int, format_: WeightFormat, seed: int
) -> None:
    grid = LibraryRounding().find_grid(num_inputs, format_)
    assert grid is not None
    values = random_values(grid, num_inputs, num_outputs, seed)
    matrix = matrix_from_values(values, grid)
    assert (matrix.compute_values() == values).all()
    stored = quantize_weight(values.T, BITS[format_])
    assert stored.is_exact
    assert (dequantize_weight(stored, num_inputs, num_outputs) == values.T).all()
    flat = stored.scales.transpose(0, 2, 1).reshape(-1, stored.scales.shape[1])
    assert (flat[:num_outputs, : matrix.scales.shape[1]] == matrix.scales).all()


@pytest.mark.parametrize("format_", ["int4", "int8"])
@pytest.mark.parametrize("num_inputs", [48, 128])
def test_a_device_stores_values_of_its_grid_as_they_are(
    format_: WeightFormat, num_inputs: int
) -> None:
    grid = StandardRounding().find_grid(num_inputs, format_)
    assert grid is not None
    values = random_values(grid, num_inputs, 7, 0)
    matrix = matrix_from_values(values, grid)
    block_size = grid.block_size if format_ == "int4" else None
    codes, scales = quantize_matrix(values.T, format_, block_size, np.dtype(np.float16))
    assert (dequantize_matrix(codes, scales) == values.T).all()
    assert (codes.astype(np.int8) == matrix.codes.T).all()


def test_floating_point_has_no_grid() -> None:
    assert StandardRounding().find_grid(64, "fp8") is None


def test_scales_map_the_largest_value_to_an_edge() -> None:
    blocks = np.array([[0.5, -4.0, 1.0], [0, 0, 0]], np.float32)
    grid = LibraryRounding().find_grid(32, "int4")
    assert grid is not None
    scales = grid.list_scales(blocks)
    assert scales.shape == (26, 2) and (scales[:, 1] == 1).all()
    assert scales[0, 0] == 0.5 and scales[1, 0] == np.float32(np.float16(-4 / 7))
    positive = StandardRounding().find_grid(32, "int4")
    assert positive is not None
    assert positive.list_scales(blocks)[0, 0] == np.float32(np.float16(4 / 7))
    assert (positive.list_scales(blocks) > 0).all()


def test_a_common_divisor_goes_to_the_scale() -> None:
    grid = Grid(block_size=2, low=-8, high=7, edges=(7,), is_signed=False, shrinks=(1.0,))
    matrix = matrix_from_values(np.array([[0.5, 1.0, 0.25]], np.float32), grid)
    assert matrix.codes.tolist() == [[1, 2, 1]] and matrix.scales.tolist() == [[0.5, 0.25]]


def test_values_beside_the_grid_are_an_error_of_the_caller() -> None:
    grid = Grid(block_size=3, low=-8, high=7, edges=(7,), is_signed=False, shrinks=(1.0,))
    with pytest.raises(AssertionError, match="beside the grid"):
        matrix_from_values(np.array([[0.5, 1.0, 0.7771]], np.float32), grid)
