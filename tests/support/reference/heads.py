"""Medusa heads as the paper defines them (Cai et al. 2024, section 2.1.1), one by one, in float64.

The names are those of the public checkpoints, so nothing is shared with the code under test.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def head_logits(
    tensors: Mapping[str, NDArray[np.generic]],
    shared_unembedding: Array,
    hidden: Array,
    shared_bias: Array | None = None,
    roots: Array | None = None,
) -> Array:
    """(num_heads, B, draft_vocab) logits of heads named as in a checkpoint, for `hidden` (B, H).

    `shared_bias` (vocab,) is what the backbone adds to its own logits: heads on its unembedding
    add it too; `roots` (B, H) are the embeddings of the root tokens, which a root map reads.
    """
    num_heads = len({key.split(".")[0] for key in tensors if key != "token_map"})
    logits = [
        [
            _logits_of_row(
                tensors,
                shared_unembedding,
                shared_bias,
                head,
                _with_root_map(tensors, head, row, None if roots is None else roots[index]),
            )
            for index, row in enumerate(hidden)
        ]
        for head in range(num_heads)
    ]
    return np.array(logits)


def _with_root_map(
    tensors: Mapping[str, NDArray[np.generic]], head: int, x: Array, root: Array | None
) -> Array:
    weight = tensors.get(f"{head}.root_map.weight")
    if weight is None:
        return x
    assert root is not None
    change = np.asarray(weight, np.float64) @ np.array([*x, *root])
    bias = tensors.get(f"{head}.root_map.bias")
    return np.asarray(x + change + (0.0 if bias is None else np.asarray(bias, np.float64)))


def _logits_of_row(
    tensors: Mapping[str, NDArray[np.generic]],
    shared_unembedding: Array,
    shared_bias: Array | None,
    head: int,
    x: Array,
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
        return np.array([float(np.dot(row, x)) for row in unembedding])
    tokens = tensors["token_map"] if "token_map" in tensors else range(len(shared_unembedding))
    logits = []
    for token in tokens:
        bias = 0.0 if shared_bias is None else float(shared_bias[int(token)])
        logits.append(float(np.dot(shared_unembedding[int(token)], x)) + bias)
    return np.array(logits)


def _affine(tensors: Mapping[str, NDArray[np.generic]], name: str, x: Array) -> Array:
    weight = tensors[f"{name}.weight"].astype(np.float64)
    y = np.array([float(np.dot(row, x)) for row in weight])
    if f"{name}.bias" in tensors:
        y = y + tensors[f"{name}.bias"].astype(np.float64)
    return y
