"""Medusa heads as the paper defines them (Cai et al. 2024, section 2.1.1), one by one, in float64.

The names are those of the public checkpoints, so nothing is shared with the code under test.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def head_logits(
    tensors: Mapping[str, NDArray[np.generic]], shared_unembedding: Array, hidden: Array
) -> Array:
    """(num_heads, B, draft_vocab) logits of heads named as in a checkpoint, for `hidden` (B, H)."""
    num_heads = len({key.split(".")[0] for key in tensors if key != "token_map"})
    logits = [
        [_logits_of_row(tensors, shared_unembedding, head, row) for row in hidden]
        for head in range(num_heads)
    ]
    return np.array(logits)


def _logits_of_row(
    tensors: Mapping[str, NDArray[np.generic]], shared_unembedding: Array, head: int, x: Array
) -> Array:
    layer = 0
    while f"{head}.{layer}.linear.weight" in tensors:
        y = _affine(tensors, f"{head}.{layer}.linear", x)
        x = x + y / (1 + np.exp(-y))
        layer += 1
    if f"{head}.projection.weight" in tensors:
        x = x + _affine(tensors, f"{head}.projection", x)
    if f"{head}.{layer}.weight" in tensors:
        unembedding = tensors[f"{head}.{layer}.weight"].astype(np.float64)
    elif "token_map" in tensors:
        unembedding = np.array([shared_unembedding[int(token)] for token in tensors["token_map"]])
    else:
        unembedding = shared_unembedding
    return np.array([float(np.dot(row, x)) for row in unembedding])


def _affine(tensors: Mapping[str, NDArray[np.generic]], name: str, x: Array) -> Array:
    weight = tensors[f"{name}.weight"].astype(np.float64)
    y = np.array([float(np.dot(row, x)) for row in weight])
    if f"{name}.bias" in tensors:
        y = y + tensors[f"{name}.bias"].astype(np.float64)
    return y
