"""From the heads' candidates to the tokens of a tree's nodes."""

import numpy as np
from numpy.typing import NDArray


def tokens_from_candidates(
    root_token: int, draft_ids: NDArray[np.int64], tree_indices: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tokens of the tree's nodes (paper, section 2.1.2; `generate_candidates` of its code).

    Args:
        root_token: the token already decided, the tree's root.
        draft_ids: (num_heads, top_k) each head's candidates, best first.
        tree_indices: (num_nodes,) positions in `[root, head 0's candidates, head 1's, ...]`.

    Returns:
        (num_nodes,) int64.
    """
    flat = np.empty(draft_ids.size + 1, np.int64)
    flat[0] = root_token
    flat[1:] = draft_ids.reshape(-1)
    return flat[tree_indices]
