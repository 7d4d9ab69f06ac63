"""Accuracies of the heads from recorded ranks."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.replay import UNKNOWN


def count_samples(ranks: NDArray[np.int16]) -> NDArray[np.int64]:
    """Number of samples of each head, (num_heads,).

    A reply of n tokens has n - 1 - i samples of head i. The paper's code divides every head's hits
    by head 0's number, which makes later heads look worse than they are.

    Args:
        ranks: (P, num_heads), as in `RankTable`.
    """
    counts: NDArray[np.int64] = (ranks != UNKNOWN).sum(axis=0)
    return counts


def compute_top_k_accuracies(ranks: NDArray[np.int16], top_k: int) -> NDArray[np.float64]:
    """Probability (num_heads, top_k) that the true token is among the first k candidates."""
    hits = np.stack([(ranks == rank).sum(axis=0) for rank in range(top_k)], axis=1)
    shares: NDArray[np.float64] = hits.cumsum(axis=1) / np.maximum(1, count_samples(ranks))[:, None]
    return shares


def compare_with_independence(ranks: NDArray[np.int16]) -> tuple[list[float], list[float]]:
    """Compares how often the heads are right together with what independence predicts.

    Returns:
        For each depth the share of positions where the first candidates of all heads down to it
        are right, and the product of these heads' shares over the same positions.
    """
    joint, product = [], []
    for depth in range(1, ranks.shape[1] + 1):
        known_ranks = ranks[(ranks[:, :depth] != UNKNOWN).all(axis=1), :depth]
        first = known_ranks == 0
        joint.append(float(first.all(axis=1).mean()) if len(known_ranks) else 0.0)
        product.append(float(first.mean(axis=0).prod()) if len(known_ranks) else 0.0)
    return joint, product
