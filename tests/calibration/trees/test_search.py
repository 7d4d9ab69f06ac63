"""The search for trees: methods are compared on replies that they have not seen."""

import numpy as np
import pytest
from support.measurements.ranks import table_of

from medusa_trt.calibration.trees.replay import (
    ABSENT,
    RankTable,
    mean_accept_length,
    replay,
)
from medusa_trt.calibration.trees.search import METHODS, replay_trees, search_trees
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import chain_tree


def test_joint_statistics_beat_independence_on_replies_not_seen() -> None:
    # Each head is right at the rank at which the one before it was right.
    rng = np.random.default_rng(0)
    rank = rng.integers(ABSENT, 3, (40, 30, 1))
    replies = list(np.broadcast_to(rank, (40, 30, 3)).astype(np.int16))
    table = RankTable.from_replies(replies)
    by_method = {c.method: c for c in search_trees(table, 4, (7,))}
    assert all(len(set(path)) == 1 for path in by_method["joint, prior 8"].tree.medusa_choices)
    fewest = by_method["joint, prior 8"].steps.sum()
    assert fewest < 0.9 * by_method["independent"].steps.sum()


def test_replayed_trees_take_no_more_steps_on_what_they_are_made_from() -> None:
    table = table_of(30)
    trees = {name: METHODS[name](table, 4, (8, 16)) for name in METHODS}
    for size in (8, 16):
        refined = replay(trees["replayed, prior 64"][size], table).steps.sum()
        assert refined <= replay(trees["joint, prior 64"][size], table).steps.sum()


def test_steps_are_counted_on_replies_not_seen() -> None:
    # On noise every method that was scored on its own replies would look better than it is.
    rng = np.random.default_rng(1)
    replies = [rng.integers(0, 10, (30, 3)).astype(np.int16) for _ in range(10)]
    table = RankTable.from_replies(replies)
    for candidate in search_trees(table, 10, (16,)):
        own_steps = replay(candidate.tree, table).steps
        assert candidate.steps.sum() > own_steps.sum() or candidate.method == "independent"
        assert candidate.tree.num_nodes == 16


def test_fixed_trees_are_replayed_as_they_are() -> None:
    table = table_of(3)
    plain, chain = replay_trees(table, [chain_tree(0), chain_tree(2)])
    assert plain.steps.tolist() == table.lengths.tolist()
    assert mean_accept_length(table, plain.steps) == 1
    assert mean_accept_length(table, chain.steps) > 1.2


def test_one_reply_is_too_few() -> None:
    with pytest.raises(CalibrationError, match="1 recorded replies are too few"):
        search_trees(table_of(1), 4, (2,))
