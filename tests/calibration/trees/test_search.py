"""The search for trees, which are scored on replies that they are not made from."""

import numpy as np
import pytest
from support.measurements.ranks import table_of

from medusa_trt.calibration.trees.growth import grow
from medusa_trt.calibration.trees.replay import (
    ABSENT,
    RankTable,
    mean_accept_length,
    replay,
)
from medusa_trt.calibration.trees.search import replay_trees, search_trees
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree, chain_tree


def test_searched_trees_follow_what_heads_do_together() -> None:
    # Each head is right at the rank at which the one before it was right.
    rng = np.random.default_rng(0)
    rank = rng.integers(ABSENT, 3, (40, 30, 1))
    table = RankTable.from_replies(list(np.broadcast_to(rank, (40, 30, 3)).astype(np.int16)))
    (searched,) = search_trees(table, (7,))
    assert all(len(set(path)) == 1 for path in searched.tree.medusa_choices)
    independent = grow(np.full((3, 3), 0.25).tolist(), 7)
    steps = replay(MedusaTree.from_choices(independent), table)
    assert searched.steps.sum() < 0.9 * steps.sum()


def test_steps_are_counted_on_replies_not_seen() -> None:
    # On noise a tree that was scored on the replies it is made from would look better than it is.
    rng = np.random.default_rng(1)
    replies = [rng.integers(0, 10, (30, 3)).astype(np.int16) for _ in range(10)]
    table = RankTable.from_replies(replies)
    (searched,) = search_trees(table, (16,))
    assert searched.steps.sum() > replay(searched.tree, table).sum()
    assert searched.tree.num_nodes == 16


def test_fixed_trees_are_replayed_as_they_are() -> None:
    table = table_of(3)
    plain, chain = replay_trees(table, [chain_tree(0), chain_tree(2)])
    assert plain.steps.tolist() == table.lengths.tolist()
    assert mean_accept_length(table, plain.steps) == 1
    assert mean_accept_length(table, chain.steps) > 1.2


def test_one_reply_is_too_few() -> None:
    with pytest.raises(CalibrationError, match="1 recorded replies are too few"):
        search_trees(table_of(1), (2,))
