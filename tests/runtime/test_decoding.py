"""Candidates, acceptance and the KV cache against slow references."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference.acceptance import accept_greedy_slowly
from support.strategies import medusa_trees

from medusa_trt.runtime.acceptance import accept_exact
from medusa_trt.runtime.drafting import node_tokens_from_indices, tokens_from_candidates
from medusa_trt.runtime.engines import kv_cache
from medusa_trt.runtime.engines.kv_cache import KVCache
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


@given(medusa_trees(max_child=4), st.integers(5, 12))
def test_candidates_are_the_ranks_of_the_nodes(tree: MedusaTree, top_k: int) -> None:
    draft_ids = 1000 + np.arange(max(tree.max_depth, 1) * top_k).reshape(-1, top_k)
    node_tokens = node_tokens_from_indices(tree.tree_indices(top_k).tolist())
    both = [ids.data.cast("B").cast("q") for ids in (draft_ids, -draft_ids)]
    expected = [draft_ids[len(node) - 1, node[-1]] for node in tree.medusa_choices]
    tokens = tokens_from_candidates([42, 43], both, node_tokens)
    assert list(tokens[0]) == [42, *expected]
    assert list(tokens[1]) == [43, *(-token for token in expected)]


@pytest.mark.parametrize("native", [True, False])
@given(tree=medusa_trees(), past_length=st.integers(0, 20), data=st.data())
def test_commit_moves_the_accepted_rows_together(
    native: bool, tree: MedusaTree, past_length: int, data: st.DataObject
) -> None:
    end = data.draw(st.integers(0, tree.num_nodes - 1))
    nodes = np.flatnonzero(tree.attn_mask[end]).tolist()
    slot, num_heads = data.draw(st.sampled_from([(0, 1), (1, 3), (2, 2)]))
    spare, head_dim = data.draw(st.sampled_from([(0, 3), (0, 64), (2, 64)]))
    capacity = past_length + tree.num_nodes + spare
    slab = np.random.default_rng(0).normal(size=(2, 2, 3, num_heads, capacity, head_dim))
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(kv_cache, "load_commit_function", lambda: None)
        cache = KVCache(slab.astype(np.float32))
    cache.commit(slot, past_length, nodes)
    expected = slab.astype(np.float32)
    for row, node in enumerate(nodes):
        moved = slab[:, :, slot, :, past_length + node]
        expected[:, :, slot, :, past_length + row] = moved
    assert np.array_equal(cache.slab, expected)


def test_a_path_longer_than_the_native_commit_takes_is_moved() -> None:
    nodes = list(range(0, 140, 2))
    slab = np.arange(150 * 4, dtype=np.float32).reshape(1, 1, 1, 1, 150, 4)
    cache = KVCache(slab.copy())
    cache.commit(0, 5, nodes)
    assert np.array_equal(cache.slab[0, 0, 0, 0, 5:75], slab[0, 0, 0, 0, 5:145:2])


def test_layers_of_the_cache_are_views_of_the_slab() -> None:
    cache = KVCache.zeros(num_layers=3, num_kv_heads=2, capacity=8, head_dim=4, dtype="float32")
    cache.layer(1, "value")[...] = 1
    assert cache.slab[1, 1].sum() == cache.slab.sum() == 2 * 8 * 4
    assert cache.layer(2, "key").flags.c_contiguous


def test_greedy_acceptance_of_a_single_node_takes_it() -> None:
    accepted = accept_exact(chain_tree(0), [3], [9])
    assert accepted == [0]
