"""Accuracies of the heads from recorded ranks: pure functions."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.replay import UNKNOWN


def head_counts(ranks: NDArray[np.int16]) -> NDArray[np.int64]:
    """(num_heads,) samples of each head.

    A reply of n tokens has n - 1 - i samples of head i. The paper's code divides every head by
    head 0's number, which makes later heads look worse than they are.

    Args:
        ranks: (P, num_heads), `UNKNOWN` where a reply has no token.
    """
    counts: NDArray[np.int64] = (ranks != UNKNOWN).sum(axis=0)
    return counts


def rank_accuracies(ranks: NDArray[np.int16], top_k: int) -> NDArray[np.float64]:
    """(num_heads, top_k) the probability that head i's candidate of rank k is the true token."""
    return _shares(_hits(ranks, top_k), ranks)


def top_k_accuracies(ranks: NDArray[np.int16], top_k: int) -> NDArray[np.float64]:
    """(num_heads, top_k) the probability that the true token is among the first k candidates."""
    return _shares(_hits(ranks, top_k).cumsum(axis=1), ranks)


def _hits(ranks: NDArray[np.int16], top_k: int) -> NDArray[np.int64]:
    """(num_heads, top_k) how often head i's candidate of rank k is the true token."""
    return np.stack([(ranks == rank).sum(axis=0) for rank in range(top_k)], axis=1)


def _shares(hits: NDArray[np.int64], ranks: NDArray[np.int16]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = hits / np.maximum(1, head_counts(ranks))[:, None]
    return shares


def joint_and_independent(ranks: NDArray[np.int16]) -> tuple[list[float], list[float]]:
    """How far from independent the heads are.

    Returns:
        For each depth the share of positions where all heads down to it have the true token first,
        and the product of their own shares over the same positions.
    """
    joint, product = [], []
    for depth in range(1, ranks.shape[1] + 1):
        known = ranks[(ranks[:, :depth] != UNKNOWN).all(axis=1), :depth]
        first = known == 0
        joint.append(float(first.all(axis=1).mean()) if len(known) else 0.0)
        product.append(float(first.mean(axis=0).prod()) if len(known) else 0.0)
    return joint, product
