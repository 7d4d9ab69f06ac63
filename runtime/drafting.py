"""Drafts: the tokens that a verify step tries, from the heads or copied from the text before.

Prompt lookup copies. Text repeats itself: a name, a quoted sentence, a line of code. Where the last
tokens occurred before, what followed them then is a better and a longer draft than the heads', and
costs nothing (prompt lookup decoding, A. Saxena 2023; `prompt_lookup_num_tokens` of transformers).
"""

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


class TokenLookup:
    """The tokens of one sequence, and where each n-gram of them last went on."""

    def __init__(self, token_ids: Sequence[int], ngram: int) -> None:
        """Starts with a prompt.

        Args:
            token_ids: the prompt.
            ngram: number of last tokens that must have occurred before, at least 1.
        """
        self._ngram = ngram
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.add(token_ids)

    def add(self, token_ids: Sequence[int]) -> None:
        """Appends tokens."""
        known = max(0, len(self._tokens) - self._ngram)
        self._tokens += token_ids
        recent = self._tokens[known:]
        ngrams = zip(*(recent[start:] for start in range(self._ngram)), strict=False)
        places = range(known + self._ngram, len(self._tokens))
        self._after.update(zip(ngrams, places, strict=False))

    def continuation(self, length: int) -> list[int] | None:
        """What followed the last n tokens where they last occurred before, or None.

        Args:
            length: tokens to return. Where the sequence ends sooner, it is taken to go on with the
                same period.
        """
        start = self._after.get(tuple(self._tokens[-self._ngram :]))
        if start is None:
            return None
        found = self._tokens[start : start + length]
        while len(found) < length:
            found += found[: length - len(found)]
        return found
