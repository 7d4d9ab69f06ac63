"""Drafts of a verify step: candidates of the heads, or tokens copied from the text so far.

Prompt lookup copies tokens. Text repeats names, quotations and lines of code: where the last tokens
occurred before, the tokens that followed them are a better and longer draft than the heads', and
cost nothing (prompt lookup decoding, A. Saxena 2023; `prompt_lookup_num_tokens` of transformers).
"""

from collections.abc import Callable, Sequence
from operator import itemgetter

NodeTokens = Callable[[Sequence[int]], Sequence[int]]
"""Selects a tree's N tokens from `[root, candidates of head 0, candidates of head 1, ...]`."""


def node_tokens_from_indices(tree_indices: Sequence[int]) -> NodeTokens:
    """Makes the function that selects the tokens of a tree from its N `tree_indices`."""
    if len(tree_indices) == 1:
        return lambda values: [values[tree_indices[0]]]
    return itemgetter(*tree_indices)


def tokens_from_candidates(
    root_tokens: Sequence[int], candidates: Sequence[memoryview], node_tokens: NodeTokens
) -> list[Sequence[int]]:
    """Selects the tokens of the tree's nodes (paper, section 2.1.2; its `generate_candidates`).

    Args:
        root_tokens: the root of the tree for each of B sequences.
        candidates: num_heads × top_k tokens for each sequence, each head's likeliest first.
        node_tokens: made by `node_tokens_from_indices`.

    Returns:
        N tokens for each of the B sequences, as lists: between two engine calls, a numpy call
        costs more than a loop over so few numbers (docs/decisions/decoding.md).
    """
    return [
        node_tokens([root_token, *candidates[index].tolist()])
        for index, root_token in enumerate(root_tokens)
    ]


class TokenLookup:
    """The tokens of one sequence, with an index of what last followed each n-gram."""

    def __init__(self, token_ids: Sequence[int], ngram: int) -> None:
        """Indexes a prompt.

        Args:
            token_ids: the prompt.
            ngram: number of tokens in an n-gram, at least 1.
        """
        self._ngram = ngram
        self._tokens: list[int] = []
        self._next_position: dict[tuple[int, ...], int] = {}
        self.add(token_ids)

    def add(self, token_ids: Sequence[int]) -> None:
        """Appends tokens."""
        num_indexed = max(0, len(self._tokens) - self._ngram)
        self._tokens += token_ids
        recent = self._tokens[num_indexed:]
        ngrams = zip(*(recent[start:] for start in range(self._ngram)), strict=False)
        positions = range(num_indexed + self._ngram, len(self._tokens))
        self._next_position.update(zip(ngrams, positions, strict=False))

    def find_continuation(self, length: int) -> list[int] | None:
        """Finds the tokens that followed the last n-gram where it last occurred; None if it is new.

        Args:
            length: number of tokens to return. If fewer tokens follow, they are repeated as a
                period.
        """
        start = self._next_position.get(tuple(self._tokens[-self._ngram :]))
        if start is None:
            return None
        tokens = self._tokens[start : start + length]
        while len(tokens) < length:
            tokens += tokens[: length - len(tokens)]
        return tokens
