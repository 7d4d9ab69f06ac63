"""From the heads' candidates to the tokens of a tree's nodes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray


def tokens_from_candidates(
    root_tokens: Sequence[int], draft_ids: NDArray[np.int64], tree_indices: Sequence[int]
) -> list[Sequence[int]]:
    """Tokens of the tree's nodes (paper, section 2.1.2; `generate_candidates` of its code).

    Args:
        root_tokens: for each of B sequences the token already decided, the tree's root.
        draft_ids: (B, num_heads, top_k) each head's candidates, best first.
        tree_indices: num_nodes positions in `[root, head 0's candidates, head 1's, ...]`.

    Returns:
        num_nodes tokens for each of the B sequences; no array, since between two engine calls a
        numpy call costs more than a walk over so few numbers (docs/decisions.md).
    """
    of_nodes = _getter(tuple(tree_indices))
    flat = draft_ids.data.cast("B").cast("q").tolist()
    size = len(flat) // len(root_tokens)
    return [
        of_nodes([root_token, *flat[index * size : (index + 1) * size]])
        for index, root_token in enumerate(root_tokens)
    ]


@lru_cache(maxsize=64)
def _getter(indices: tuple[int, ...]) -> Callable[[list[int]], Sequence[int]]:
    """Takes the elements at these positions."""
    if len(indices) == 1:
        return lambda values: [values[indices[0]]]
    return itemgetter(*indices)
