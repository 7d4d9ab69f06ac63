"""Blocks of weights that lie on a grid already, as those of a quantized checkpoint do.

Such a block is a scale times small integers. With that scale it is stored as it is, where any
other one would round it a second time.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUM_TRIED = 4
"""Values of a block that show, in nearly all blocks of other weights, that there is no grid."""

Floats = NDArray[np.float32]


def find_exact_scales(
    blocks: Floats, low: int, high: int, dtype: np.dtype[Any], *, negative: bool = False
) -> Floats:
    """Finds the scales by which blocks are whole numbers, bit for bit.

    Args:
        blocks: (..., block) float32.
        low: the smallest code, zero or less.
        high: the largest code.
        dtype: type of the stored scales.
        negative: whether a scale may be negative.

    Returns:
        (...) float32: the largest scale of each block that `dtype` holds and by which all codes
        are from `low` to `high`, a positive one where there is a choice; 0 for a block of zeros,
        NaN where there is none.
    """
    limit = max(-low, high)
    scales = np.full(blocks.shape[:-1], np.nan, np.float32)
    with np.errstate(all="ignore"):
        tried = _find_common_steps(_order_by_place(np.abs(blocks[..., :_NUM_TRIED])), limit)
        likely = np.nonzero(~np.isnan(tried).reshape(scales.shape))
        likely_blocks = _order_by_place(blocks[likely])
        steps = _find_common_steps(np.abs(likely_blocks), limit)
        scales[likely] = _find_representable(likely_blocks, steps, low, high, dtype, negative)
    return scales


def _order_by_place(blocks: Floats) -> Floats:
    """Transposes (..., block) to (block, num_blocks), so that loops run over all blocks."""
    first: Floats = np.moveaxis(blocks, -1, 0)
    return np.ascontiguousarray(first.reshape(len(first), -1))


def _find_common_steps(magnitudes: Floats, limit: int) -> Floats:
    """Finds each column's greatest common divisor, NaN where it is below the largest over `limit`.

    Euclid's algorithm for all values of a block at once. It is exact where there is a grid, since
    products of a scale and a small integer have few bits; elsewhere it ends soon.
    """
    values, step = magnitudes, magnitudes.max(0)
    least = step / (limit + 0.5)
    divisors = np.where(step == 0, np.float32(0), np.float32(np.nan))
    columns = np.arange(len(step))
    while columns.size:
        rest = np.abs(values - np.rint(values / step) * step)
        rest[rest == 0] = np.inf
        smallest = rest.min(0)
        divided = np.flatnonzero(smallest == np.inf)
        divisors[columns[divided]] = step[divided]
        others = np.flatnonzero((smallest >= least) & (smallest < np.inf))
        columns, values = columns[others], values.take(others, 1)
        step, least = smallest[others], least[others]
    return divisors


def _find_representable(
    blocks: Floats, steps: Floats, low: int, high: int, dtype: np.dtype[Any], negative: bool
) -> Floats:
    """Finds the first of a step, its half, its third and so on that `dtype` holds, or NaN."""
    limit = max(-low, high)
    scales = np.where(steps == 0, np.float32(0), np.float32(np.nan))
    largest = np.abs(blocks).max(0)
    for divisor in range(1, limit + 1):
        for sign in (1, -1) if negative else (1,):
            within = largest <= (limit + 0.5) * (steps / divisor)
            columns = np.flatnonzero(np.isnan(scales) & within)
            if not columns.size:
                return scales
            values = blocks[:, columns]
            stored = (steps[columns] / (divisor * sign)).astype(dtype).astype(np.float32)
            codes = np.rint(values / stored)
            is_exact = (codes * stored == values).all(0)
            is_exact &= (codes.min(0) >= low) & (codes.max(0) <= high)
            scales[columns[is_exact]] = stored[is_exact]
    return scales
