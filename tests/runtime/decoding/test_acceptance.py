"""Exact and typical acceptance against slow references and special cases."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference.acceptance import accept_greedy_slowly, accept_typical_slowly
from support.strategies import medusa_trees

from medusa_trt.runtime.decoding.acceptance import accept_exact, accept_typical
from medusa_trt.tree_configs import MedusaTree, chain_tree


@given(medusa_trees(), st.data())
def test_greedy_acceptance_takes_the_longest_matching_path(
    tree: MedusaTree, data: st.DataObject
) -> None:
    # Siblings are different ranks of one head, so their tokens differ.
    ranks = [node[-1] for node in tree.medusa_choices]
    tokens = [data.draw(st.integers(0, 2)), *ranks]
    some = st.integers(0, max([2, *ranks]))
    argmax = data.draw(st.lists(some, min_size=len(tokens), max_size=len(tokens)))
    accepted = accept_exact(tree, tokens, argmax)
    length, ends = accept_greedy_slowly(tree, tokens, argmax)
    assert len(accepted) == length
    assert accepted[-1] in ends
    for parent, child in pairwise(accepted):
        assert tree.parents[child] == parent and tokens[child] == argmax[parent]


def test_a_short_path_is_not_extended_by_its_padding() -> None:
    # Fault 1 of the reference implementation: a leaf whose argmax is token 0 went on into the
    # padding of its row, which read the last node.
    tree = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 0, 0)])
    tokens = [7, 5, 6, 0, 0]
    argmax = [6, 1, 0, 0, 0]
    accepted = accept_exact(tree, tokens, argmax)
    assert accepted == [0, 2]


def test_greedy_acceptance_of_a_single_node_takes_it() -> None:
    accepted = accept_exact(chain_tree(0), [3], [9])
    assert accepted == [0]


def test_acceptance_follows_the_drawn_tokens() -> None:
    tree = MedusaTree.from_choices([(0,), (1,), (1, 0)])
    accepted = accept_exact(tree, [5, 6, 7, 8], [7, 9, 8, 3])
    assert accepted == [0, 2, 3]


def typical(
    tree: MedusaTree,
    logprobs: list[float],
    entropy: list[float],
    threshold: float = 0.09,
    alpha: float = 0.3,
) -> list[int]:
    return accept_typical(
        tree,
        logprobs,
        entropy,
        posterior_threshold=threshold,
        posterior_alpha=alpha,
    )


@given(medusa_trees(), st.data(), st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_typical_acceptance_is_the_papers(
    tree: MedusaTree, data: st.DataObject, threshold: float, alpha: float
) -> None:
    def numbers(low: float, high: float) -> list[float]:
        values = st.floats(low, high, width=32)
        size = tree.num_nodes
        return data.draw(st.lists(values, min_size=size, max_size=size))

    logprobs, entropy = numbers(-4, 0), numbers(0, 3)
    accepted = typical(tree, logprobs, entropy, threshold, alpha)
    length, likelihood, _ = accept_typical_slowly(tree, logprobs, entropy, threshold, alpha)
    assert len(accepted) == length
    assert sum(logprobs[node] for node in accepted[1:]) == pytest.approx(likelihood, abs=1e-4)


def test_the_root_is_always_taken() -> None:
    accepted = typical(chain_tree(2), [-50.0, -50.0, 0.0], [0.0, 0.0, 0.0])
    assert accepted == [0]


def test_an_uncertain_model_accepts_unlikely_tokens() -> None:
    unlikely = [0.0, math.log(0.05)]
    assert typical(chain_tree(1), unlikely, [0.1, 0.0]) == [0]
    assert typical(chain_tree(1), unlikely, [2.0, 0.0]) == [0, 1]


def test_equally_long_paths_go_by_likelihood() -> None:
    tree = MedusaTree.from_choices([(0,), (1,)])
    assert typical(tree, [0.0, math.log(0.3), math.log(0.4)], [1.0] * 3) == [0, 2]
