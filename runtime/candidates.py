"""From the heads' candidates to the tokens of a tree's nodes."""

from collections.abc import Callable, Sequence
from operator import itemgetter

NodeTokens = Callable[[Sequence[int]], Sequence[int]]
"""Takes a tree's N tokens out of `[root, head 0's candidates, head 1's, ...]`."""


def node_tokens_from_indices(tree_indices: Sequence[int]) -> NodeTokens:
    """Prepares `tokens_from_candidates` for a tree, of which it takes N positions."""
    if len(tree_indices) == 1:
        return lambda values: [values[tree_indices[0]]]
    return itemgetter(*tree_indices)


def tokens_from_candidates(
    root_tokens: Sequence[int], candidates: Sequence[memoryview], node_tokens: NodeTokens
) -> list[Sequence[int]]:
    """Tokens of the tree's nodes (paper, section 2.1.2; `generate_candidates` of its code).

    Args:
        root_tokens: for each of B sequences the token already decided, the tree's root.
        candidates: for each sequence num_heads × top_k numbers, each head's candidates, best first.
        node_tokens: of the tree.

    Returns:
        N tokens for each of the B sequences; no array, since between two engine calls a numpy
        call costs more than a walk over so few numbers (docs/decisions/decoding.md).
    """
    return [
        node_tokens([root_token, *candidates[index].tolist()])
        for index, root_token in enumerate(root_tokens)
    ]
