"""Compensated rounding, against brute force and against rounding to nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference.compensation import compensate_slowly

from medusa_trt.calibration.quantization.compensation import (
    choose_better,
    factor_moments,
    round_compensated,
)
from medusa_trt.export.quantization.grid import Grid, matrix_from_values
from medusa_trt.export.quantization.rounding import LibraryRounding, Rounding, StandardRounding
from medusa_trt.export.weight_formats import WeightFormat

SMALL_GRID = Grid(
    block_size=4, low=-8, high=7, edges=(-8, 7), is_signed=True, shrinks=(1.0, 0.9, 0.8)
)
DAMPING = 0.01


def random_layer(
    seed: int, num_inputs: int, num_outputs: int, num_rows: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (outputs, inputs), and correlated inputs (rows, inputs)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    mixing = torch.randn(num_inputs, num_inputs, generator=generator)
    rows = torch.randn(num_rows, num_inputs, generator=generator) @ (mixing + torch.eye(num_inputs))
    return weight, rows


def moments_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.T.double() @ rows.double()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 14), st.integers(1, 5))
def test_it_is_the_papers_column_by_column_method(
    seed: int, num_inputs: int, num_outputs: int
) -> None:
    weight, rows = random_layer(seed, num_inputs, num_outputs)
    factors = factor_moments(moments_of(rows))
    assert factors is not None
    rounded = round_compensated(weight, factors, SMALL_GRID)
    expected = compensate_slowly(weight.double().numpy(), rows.double().numpy(), SMALL_GRID)
    # A value in the middle between two codes may fall to either by the order of summation, and
    # then all values after it differ: nearly all outputs are equal, and no error is larger.
    moments = moments_of(rows)
    errors, expected_errors = (
        torch.einsum("nk,kl,nl->n", change, moments, change)
        for change in (rounded.double() - weight, torch.from_numpy(expected) - weight)
    )
    same = (rounded.numpy() == expected.astype(np.float32)).all(1)
    assert torch.allclose(errors[same], expected_errors[same], rtol=1e-4)
    assert same.sum() >= num_outputs - 1


@pytest.mark.parametrize(
    ("rounding", "format_"),
    [
        (LibraryRounding(), "int4"),
        (LibraryRounding(), "int8"),
        (StandardRounding(), "int4"),
        (StandardRounding(), "int8"),
    ],
)
def test_the_error_is_never_larger_than_that_of_the_nearest_values(
    rounding: Rounding, format_: WeightFormat
) -> None:
    weight, rows = random_layer(3, 208, 40)
    moments = moments_of(rows)
    factors = factor_moments(moments)
    grid = rounding.find_grid(weight.shape[1], format_)
    assert factors is not None and grid is not None
    nearest = torch.from_numpy(rounding.round_weight(weight.T.numpy(), format_)).T
    compensated = round_compensated(weight, factors, grid)
    values, error, nearest_error = choose_better(weight, moments, compensated, nearest)

    def output_errors(rounded: torch.Tensor) -> torch.Tensor:
        return (rows @ (rounded - weight).T).square().sum(0)

    assert (output_errors(values) <= output_errors(nearest) * 1.001).all()
    assert error < 0.8 * nearest_error
    assert error == pytest.approx(float(output_errors(values).sum()), rel=1e-3)
    matrix = matrix_from_values(values.contiguous().numpy(), grid)
    assert (matrix.compute_values() == values.numpy()).all()
    assert matrix.codes.min() >= grid.low and matrix.codes.max() <= grid.high


def test_an_output_that_compensation_does_not_help_keeps_the_nearest_values() -> None:
    weight, rows = random_layer(4, 8, 3)
    worse = weight + 10
    nearest = weight.round()
    values, error, nearest_error = choose_better(weight, moments_of(rows), worse, nearest)
    assert torch.equal(values, nearest) and error == nearest_error


def test_inputs_that_are_always_zero_have_no_factors() -> None:
    assert factor_moments(torch.zeros(4, 4, dtype=torch.float64)) is None
    assert factor_moments(torch.full((2, 2), float("nan"), dtype=torch.float64)) is None


def test_some_dead_inputs_are_rounded_to_nearest() -> None:
    weight, rows = random_layer(5, 8, 3)
    rows[:, [1, 6]] = 0
    factors = factor_moments(moments_of(rows))
    assert factors is not None and factors.isfinite().all()
    rounded = round_compensated(weight, factors, SMALL_GRID)
    assert (rounded[:, [1, 6]] - weight[:, [1, 6]]).abs().max() < 0.5
