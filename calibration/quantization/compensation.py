"""Rounding of one matrix whose later inputs make up for the error of the earlier ones.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323), with scales searched for within the sweep.
"""

from collections.abc import Iterator

import numpy as np
import torch

from medusa_trt.export.quantization.grid import Floats, Grid

_DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it, as in the paper."""

_MAX_SWEEP = 128
"""Most inputs whose errors are spread one by one; larger blocks get their scales beforehand."""

_OUTPUTS = 512
"""Outputs that are rounded together: their tries stay in the processor's cache."""


def factor_moments(moments: torch.Tensor) -> torch.Tensor | None:
    """Computes the factors by which an input's error is spread over the inputs after it.

    Args:
        moments: (inputs, inputs) float64, the sum of xx' over the inputs x of a layer.

    Returns:
        (inputs, inputs) float32: the upper triangular U with U'U = inverse of the damped moments;
        None where all inputs are zero, or some is no number.
    """
    damping = _DAMPING * float(moments.diagonal().mean())
    if not 0 < damping < float("inf"):
        return None
    damped = moments.clone()
    damped.diagonal().add_(damping)
    # With the order of the inputs reversed, the lower factor L of the damped moments is an upper
    # one, R, with RR' = the damped moments. So U is the inverse of R.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    identity = torch.eye(len(moments), dtype=moments.dtype)
    factors: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factors.float()


def round_compensated(weight: torch.Tensor, factors: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Rounds a matrix block by block, each input's error being spread over the inputs after it.

    Of the scales that are worth a try, each block of an output gets the one of the least error
    in the layer's output, if the inputs after it make up for as much as they can.

    Args:
        weight: (outputs, inputs) float32.
        factors: see `factor_moments`.
        grid: the values that the result can hold.

    Returns:
        (outputs, inputs) float32 of the grid.
    """
    return torch.cat([_round_outputs(part, factors, grid) for part in weight.split(_OUTPUTS)])


def _round_outputs(weight: torch.Tensor, factors: torch.Tensor, grid: Grid) -> torch.Tensor:
    left = weight.clone()
    rounded = torch.empty_like(weight)
    fixed = None
    if grid.block_size > _MAX_SWEEP:
        fixed = [_list_scales(grid, part) for part in weight.split(grid.block_size, dim=1)]
    for columns in _sweeps(weight.shape[1], grid.block_size):
        block = left[:, columns]
        first_try = None if fixed is None else fixed[columns.start // grid.block_size]
        scales = _list_scales(grid, block) if first_try is None else first_try
        values, errors = _sweep(block, factors[columns, columns], scales, grid)
        rounded[:, columns] = values
        left[:, columns.stop :] -= errors @ factors[columns, columns.stop :]
    return rounded


def _list_scales(grid: Grid, block: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(grid.list_scales(block.numpy()))


def _sweeps(num_inputs: int, block_size: int) -> Iterator[slice]:
    """Splits the inputs into blocks of one scale, and large blocks further."""
    for start in range(0, num_inputs, block_size):
        stop = min(start + block_size, num_inputs)
        for first in range(start, stop, _MAX_SWEEP):
            yield slice(first, min(first + _MAX_SWEEP, stop))


def _sweep(
    block: torch.Tensor, factors: torch.Tensor, scales: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a block by the scale of the least error, of those that are tried.

    Args:
        block: (outputs, block) float32.
        factors: (block, block), its part of the diagonal.
        scales: (tries, outputs) float32.
        grid: the values that the result can hold.

    Returns:
        (outputs, block) values and errors, as multiples of the rows of the factors.
    """
    num_outputs, size = block.shape
    divisors = scales.reshape(-1)
    left = block.T[:, None].expand(size, len(scales), num_outputs).reshape(size, -1).clone()
    values, errors = torch.empty_like(left), torch.empty_like(left)
    for index in range(size):
        codes = (left[index] / divisors).round_().clamp_(grid.low, grid.high)
        torch.mul(codes, divisors, out=values[index])
        torch.sub(left[index], values[index], out=errors[index])
        errors[index] /= factors[index, index]
        left[index + 1 :].addr_(factors[index, index + 1 :], errors[index], alpha=-1)
    shape = size, len(scales), num_outputs
    best = errors.square().sum(0).reshape(shape[1:]).argmin(0).expand(size, 1, num_outputs)
    best_values, best_errors = (
        each.reshape(shape).gather(1, best)[:, 0].T for each in (values, errors)
    )
    return best_values, best_errors


def choose_better(
    weight: torch.Tensor, moments: torch.Tensor, compensated: torch.Tensor, nearest: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """Takes each output's compensated values if they have the smaller error in the layer's output.

    All matrices are (outputs, inputs) float32.

    Returns:
        The values, their sum of squared errors in the layer's outputs, and that of `nearest`.
    """
    narrow = moments.float()
    nearest_errors = _measure_errors(nearest - weight, narrow)
    errors = _measure_errors(compensated - weight, narrow)
    is_better = errors < nearest_errors
    values = torch.where(is_better[:, None], compensated, nearest)
    total = torch.where(is_better, errors, nearest_errors).sum()
    return values, float(total), float(nearest_errors.sum())


def _measure_errors(change: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Sums the squares of what a change of the weights (outputs, inputs) does to each output."""
    return ((change @ moments) * change).sum(1).double()


def values_from_nearest(matrix: Floats) -> torch.Tensor:
    """Turns a rounded (inputs, outputs) matrix to (outputs, inputs)."""
    return torch.from_numpy(np.ascontiguousarray(matrix.T))
