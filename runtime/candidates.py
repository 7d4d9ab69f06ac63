"""From the heads' candidates to the tokens of a tree's nodes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def tokens_from_candidates(
    root_tokens: Sequence[int], draft_ids: NDArray[np.int64], tree_indices: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tokens of the tree's nodes (paper, section 2.1.2; `generate_candidates` of its code).

    Args:
        root_tokens: for each of B sequences the token already decided, the tree's root.
        draft_ids: (B, num_heads, top_k) each head's candidates, best first.
        tree_indices: (num_nodes,) positions in `[root, head 0's candidates, head 1's, ...]`.

    Returns:
        (B, num_nodes) int64.
    """
    batch = len(root_tokens)
    flat = np.empty((batch, draft_ids.size // batch + 1), np.int64)
    flat[:, 0] = root_tokens
    flat[:, 1:] = draft_ids.reshape(batch, -1)
    return flat.take(tree_indices, axis=1)
