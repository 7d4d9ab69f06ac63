"""Ranks of true tokens among the heads' candidates, made by hand."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.replay import ABSENT, UNKNOWN, RankTable


def correlated_ranks(seed: int, num_rows: int, num_heads: int = 3) -> NDArray[np.int16]:
    """Ranks of texts that are easy or hard for a while: the heads are right or wrong together."""
    rng = np.random.default_rng(seed)
    easy = np.repeat(rng.random(num_rows // 10 + 1) < 0.5, 10)[:num_rows]
    ranks = rng.integers(ABSENT, 4, (num_rows, num_heads)).astype(np.int16)
    ranks[easy] = np.where(rng.random((easy.sum(), num_heads)) < 0.85, 0, ranks[easy])
    for head in range(num_heads):
        ranks[num_rows - head :, head] = UNKNOWN
    return ranks


def table_of(num_replies: int, num_rows: int = 60, seed: int = 0) -> RankTable:
    replies = [correlated_ranks(seed + reply, num_rows) for reply in range(num_replies)]
    return RankTable.from_replies(replies)
