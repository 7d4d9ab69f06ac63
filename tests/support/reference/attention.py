"""Attention of one query row at a time, in double precision."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rotated(x: Array, position: int, cos: Array, sin: Array) -> Array:
    """One head's vector turned by its position, in halves, the rest as it is."""
    half = cos.shape[1]
    out = x.astype(np.float64).copy()
    for i in range(half):
        c, s = float(cos[position, i]), float(sin[position, i])
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


def attended(
    query: Array,
    keys: Array,
    values: Array,
    allowed: list[int],
    scale: float,
    softcap: float = 0.0,
    sink: float | None = None,
) -> Array:
    """Softmax attention of one query to the allowed rows.

    `softcap` bounds the scores unless it is 0. `sink` is the score of a row of zeros.
    """
    scores = [scale * float(np.dot(query, keys[row])) for row in allowed]
    if softcap:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    sinks = [] if sink is None else [sink]
    top = max(scores + sinks)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights) + sum(math.exp(score - top) for score in sinks)
    out = np.zeros(values.shape[1])
    for weight, row in zip(weights, allowed, strict=True):
        out += weight / total * values[row]
    return out
