"""Optimal brain quantization in a fixed order, with an explicit inverse for each input."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.export.quantization.grid import Grid

Floats = NDArray[np.float64]


def compensate_slowly(weight: Floats, rows: Floats, grid: Grid) -> Floats:
    """Rounds a weight (outputs, inputs) for inputs `rows` (rows, inputs), one by one.

    After each input the error is made up for by the inputs that are left, by least squares on
    their damped moments (Frantar et al. 2022, equation 2, with equation 3 in place of which the
    moments of the inputs that are left are inverted anew).
    """
    moments = rows.T @ rows
    moments += 0.01 * np.diag(moments).mean() * np.eye(len(moments))
    return np.stack([_round_output(output, moments, grid) for output in weight])


def _round_output(output: Floats, moments: Floats, grid: Grid) -> Floats:
    num_inputs = len(output)
    left, rounded = output.copy(), np.zeros_like(output)
    for start in range(0, num_inputs, grid.block_size):
        stop = min(start + grid.block_size, num_inputs)
        block = left[start:stop].astype(np.float32)[None]
        tries = []
        for scale in grid.list_scales(block)[:, 0].astype(np.float64):
            changed, values, loss = left.copy(), [], 0.0
            for index in range(start, stop):
                code = np.clip(np.rint(changed[index] / scale), grid.low, grid.high)
                values.append(code * scale)
                error = changed[index] - values[-1]
                inverse = np.linalg.inv(moments[index:, index:])
                loss += error**2 / inverse[0, 0]
                changed[index:] -= error * inverse[:, 0] / inverse[0, 0]
            tries.append((loss, values, changed))
        _, rounded[start:stop], left = min(tries, key=lambda each: each[0])
    return rounded
