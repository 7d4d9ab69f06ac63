"""Which trees a step gets: trials of sizes, heads that rest, and plans of different kinds."""

import gc
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

import medusa_trt.runtime.decoding.drafter as drafter_module
from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.decoding.drafter import Drafter
from medusa_trt.runtime.decoding.drafting import TokenLookup
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.engines.base import Drafts, TreeBatch
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.tree_configs import MedusaTree, load_tree

NUM_HEADS, TOP_K = 3, 4


class Heads:
    """An engine's heads, which are as sure of each candidate as they are told."""

    takes_new_trees, batch_size, capacity = True, 4, 500

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares, self.num_drafts = shares, 0

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        self.num_drafts += 1
        ids = np.tile(np.arange(TOP_K), (len(root_ids), NUM_HEADS, 1))
        logprobs = np.log(np.array(self.shares, np.float32))
        return Drafts(ids, np.broadcast_to(logprobs, ids.shape).copy())


def state(tree: MedusaTree | None = None, text: Sequence[int] = ()) -> SequenceState:
    return SequenceState(
        slot=0,
        chooser=Chooser(GenerationOptions(), [1], 8),
        tree=tree,
        lookup=TokenLookup(text, 2) if text else None,
        root_token=9,
        hidden=np.zeros((1, 2), np.float32),
    )


def run(heads: Heads, step_ms: Callable[[int], float], num_steps: int) -> list[int]:
    """Plans steps of one sequence whose drafts are right as often as the heads say."""
    drafter = Drafter(
        heads,  # type: ignore[arg-type]
        num_heads=NUM_HEADS,
        top_k=TOP_K,
        min_nodes=1,
    )
    sizes = []
    for _ in range(num_steps):
        plan = drafter.plan([state()])
        sizes.append(plan.tree.num_nodes)
        drafter.learn(plan, [state()], 100, 1e-3 * step_ms(plan.tree.num_nodes))
    return sizes


def test_sizes_grow_step_by_step_from_plain_decoding() -> None:
    sizes = run(Heads((0.6, 0.2, 0.1, 0.05)), lambda nodes: 10 + 0.5 * nodes + 0.1 * nodes**2, 200)
    assert sizes[:3] == [1, 1, 1]
    largest = 1
    for size in sizes:
        assert size <= 2 * largest
        largest = max(largest, size)
    assert 32 not in sizes, "a size far from the best one was tried"
    usual = max(set(sizes), key=sizes.count)
    assert 2 < usual < 16 and sizes.count(usual) > 170


def test_heads_that_do_not_pay_rest() -> None:
    heads = Heads((0.02, 0.01, 0.01, 0.01))
    sizes = run(heads, lambda nodes: 10.0 * nodes, 200)
    assert sizes[20:].count(1) > 175
    assert heads.num_drafts < 40


def test_heads_that_pay_run_at_every_step() -> None:
    heads = Heads((0.6, 0.2, 0.1, 0.05))
    run(heads, lambda nodes: 10 + nodes, 100)
    assert heads.num_drafts > 90, "some steps measure plain decoding"


def test_sequences_with_trees_of_their_own_are_joined() -> None:
    heads = Heads((0.6, 0.2, 0.1, 0.05))
    drafter = Drafter(
        heads,  # type: ignore[arg-type]
        num_heads=NUM_HEADS,
        top_k=TOP_K,
        min_nodes=1,
    )
    fixed = load_tree("cartesian-2x3")
    states = [
        state(),
        state(fixed),
        state(load_tree("plain")),
        state(fixed, [5, 6, 7, 8, 3, 3, 5, 6]),
    ]
    plan = drafter.plan(states)
    assert isinstance(plan.tree, TreeBatch)
    assert plan.tree.parents.shape == (4, fixed.num_nodes)
    assert plan.trees[1] is fixed
    assert plan.tokens[3][:3] == [9, 7, 8] and list(plan.copied[3][:2]) == [7, 8]
    assert plan.tokens[1] == [9, *(node[-1] for node in fixed.medusa_choices)]
    assert np.array_equal(plan.tree.additive_mask[1] == 0, fixed.attn_mask)
    unread = plan.tree.additive_mask[2] == 0
    assert np.array_equal(unread[:, 0], np.ones(fixed.num_nodes, bool))
    assert unread.sum() == 2 * fixed.num_nodes - 1


def test_one_slow_run_of_the_heads_does_not_end_their_use() -> None:
    heads = Heads((0.6, 0.2, 0.1, 0.05))
    draft = heads.draft

    def slow_once(hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        if heads.num_drafts == 30:
            time.sleep(0.3)  # as long as thirty steps
        return draft(hidden, root_ids)

    heads.draft = slow_once  # type: ignore[method-assign]
    run(heads, lambda nodes: 10 + nodes, 200)
    assert heads.num_drafts > 150


def test_trees_are_fixed_where_the_library_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_module, "find_library", lambda: None)
    drafter = Drafter(
        Heads((0.6, 0.2, 0.1, 0.05)),  # type: ignore[arg-type]
        num_heads=NUM_HEADS,
        top_k=TOP_K,
        min_nodes=1,
    )
    assert not drafter.grows_trees
    plan = drafter.plan([state(load_tree("cartesian-2x3"))])
    drafter.learn(plan, [state(load_tree("cartesian-2x3"))], 10, 0.01)


def test_named_trees_of_many_requests_are_not_all_kept() -> None:
    drafter = Drafter(
        Heads((0.6, 0.2, 0.1, 0.05)),  # type: ignore[arg-type]
        num_heads=NUM_HEADS,
        top_k=TOP_K,
        min_nodes=1,
    )
    kept = []
    for child in range(200):
        tree = MedusaTree.from_choices([[0], [1 + child % 3]])
        kept.append(weakref.ref(tree.parents))
        drafter.plan([state(tree)])
    del tree
    gc.collect()
    assert sum(one() is not None for one in kept) < 100
