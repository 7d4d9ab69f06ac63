"""Tokens of a tree's nodes, and prompt lookup against a search from the end."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import medusa_trees

from medusa_trt.runtime.decoding.drafting import (
    TokenLookup,
    node_tokens_from_indices,
    tokens_from_candidates,
)
from medusa_trt.tree_configs import MedusaTree


@given(medusa_trees(max_child=4), st.integers(5, 12))
def test_candidates_are_the_ranks_of_the_nodes(tree: MedusaTree, top_k: int) -> None:
    draft_ids = 1000 + np.arange(max(tree.max_depth, 1) * top_k).reshape(-1, top_k)
    node_tokens = node_tokens_from_indices(tree.tree_indices(top_k).tolist())
    both = [ids.data.cast("B").cast("q") for ids in (draft_ids, -draft_ids)]
    expected = [draft_ids[len(node) - 1, node[-1]] for node in tree.medusa_choices]
    tokens = tokens_from_candidates([42, 43], both, node_tokens)
    assert list(tokens[0]) == [42, *expected]
    assert list(tokens[1]) == [43, *(-token for token in expected)]


def continuation_slowly(tokens: Sequence[int], ngram: int, length: int) -> list[int] | None:
    """Searches every earlier position, the latest first; beyond the end it reads its own result."""
    for start in reversed(range(len(tokens) - ngram)):
        if tokens[start : start + ngram] == tokens[-ngram:]:
            extended = list(tokens)
            for place in range(length):
                extended.append(extended[start + ngram + place])
            return extended[len(tokens) :]
    return None


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1), st.integers(1, 4))
def test_a_continuation_is_that_of_the_latest_earlier_place(
    pieces: list[list[int]], ngram: int
) -> None:
    lookup, tokens = TokenLookup(pieces[0], ngram), list(pieces[0])
    for piece in pieces[1:]:
        lookup.add(piece)
        tokens += piece
    for length in (1, 3, 9):
        assert lookup.find_continuation(length) == continuation_slowly(tokens, ngram, length)


def test_a_repetition_goes_on_with_its_period() -> None:
    assert TokenLookup([7, 1, 2, 3, 1, 2, 3, 1], 3).find_continuation(7) == [2, 3, 1, 2, 3, 1, 2]
    assert TokenLookup([7, 1, 2, 3], 3).find_continuation(7) is None
