"""Draft trees by the definition: every path of tokens that is proposed, with its probability."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Path = tuple[int, ...]


def shares_of_paths(
    ids: NDArray[np.int64],
    logprobs: NDArray[np.float32],
    copied: Sequence[int],
    copied_share: float,
    later_share: float,
) -> dict[Path, float]:
    """Probability of every path of tokens that the heads or the copied text propose.

    Args:
        ids: (num_heads, top_k) candidates.
        logprobs: (num_heads, top_k).
        copied: what may follow the root.
        copied_share: probability that the first copied token is right.
        later_share: probability that a later one is right if those before it are.
    """
    shares: dict[Path, float] = {}
    level: dict[Path, float] = {(): 1.0}
    for depth in range(max(len(ids), len(copied))):
        longer: dict[Path, float] = {}
        for path, share in level.items():
            proposals: list[tuple[int, float]] = []
            if depth < len(ids):
                chances = np.exp(logprobs[depth]).tolist()
                proposals += zip(ids[depth].tolist(), chances, strict=True)
            if depth < len(copied) and path == tuple(copied[:depth]):
                proposals.append((copied[depth], later_share if depth else copied_share))
            for token, chance in proposals:
                whole = (*path, token)
                longer[whole] = max(share * chance, longer.get(whole, 0.0))
        shares |= longer
        level = longer
    return shares
