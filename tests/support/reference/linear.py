"""Quantized products and tree attention, one number at a time."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def quantized_rows(x: Array, block: int) -> Array:
    """What is left of (M, K) activations after 8-bit rounding by row and block.

    Codes are found in single precision, as the operator does: elsewhere one on the edge between
    two would fall the other way.
    """
    kept = np.zeros(x.shape, np.float64)
    for row in range(len(x)):
        for start in range(0, x.shape[1], block):
            part = x[row, start : start + block].astype(np.float32)
            largest = max(abs(value) for value in part)
            if largest > 1e-30:
                codes = np.rint(part * (np.float32(127) / largest))
                kept[row, start : start + block] = codes.astype(np.float64) * largest / 127
    return kept


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """Each row over its root mean square, times the weight."""
    rows = [
        np.array(row) / math.sqrt(sum(value * value for value in row) / len(row) + epsilon)
        for row in x.tolist()
    ]
    normalized: Array = np.array(rows) * weight
    return normalized


def silu(x: Array) -> Array:
    """x times its logistic function."""
    activated: Array = x / (1 + np.exp(-x))
    return activated
