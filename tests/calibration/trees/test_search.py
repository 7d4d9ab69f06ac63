"""Tree growth and search against dynamic programs, all trees, and decoding itself."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.ranks import correlated_ranks, table_of
from support.reference.tree_program import all_trees, best_length
from support.strategies import medusa_trees

from medusa_trt.calibration.trees.growth import (
    Node,
    expected_accept_length,
    grow,
    independent,
    joint,
    most_frequent_paths,
)
from medusa_trt.calibration.trees.head_accuracy import (
    head_counts,
    joint_and_independent,
    rank_accuracies,
    top_k_accuracies,
)
from medusa_trt.calibration.trees.replay import (
    ABSENT,
    UNKNOWN,
    RankTable,
    mean_accept_length,
    ranks_from_drafts,
    replay,
)
from medusa_trt.calibration.trees.search import METHODS, fixed_candidates, search
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree, preset_names

PUBLISHED_TOP_1 = (0.560, 0.316, 0.201, 0.147, 0.118)
PUBLISHED_TOP_5 = (0.780, 0.563, 0.417, 0.340, 0.300)


def published_accuracies(top_k: int = 10) -> NDArray[np.float64]:
    """Vicuna-7B's heads, by a rule through top-1 and top-5: misses fall as a power of k."""
    top_1, top_5 = np.array(PUBLISHED_TOP_1)[:, None], np.array(PUBLISHED_TOP_5)[:, None]
    power = np.log((1 - top_1) / (1 - top_5)) / np.log(5)
    top = 1 - (1 - top_1) * np.arange(1, top_k + 1) ** -power
    return np.diff(top, axis=1, prepend=0)


probabilities = st.integers(1, 3).flatmap(
    lambda top_k: st.lists(
        st.lists(st.integers(0, 20), min_size=top_k, max_size=top_k).map(
            lambda counts: [count / 64 for count in counts]
        ),
        min_size=1,
        max_size=3,
    )
)


@settings(max_examples=60, deadline=None)
@given(probabilities, st.integers(1, 5))
def test_growing_finds_the_best_tree_of_all(rows: list[list[float]], num_nodes: int) -> None:
    heads = independent(np.array(rows))
    lengths = [
        expected_accept_length(MedusaTree.from_choices(choices), heads)
        for choices in all_trees(len(rows), len(rows[0]), num_nodes)
    ]
    grown = MedusaTree.from_choices(grow(heads, num_nodes))
    if lengths:
        assert expected_accept_length(grown, heads) == pytest.approx(max(lengths))
        assert best_length(rows, num_nodes) == pytest.approx(max(lengths))
    else:
        assert grown.num_nodes < num_nodes and best_length(rows, num_nodes) == -np.inf


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.001, 0.2), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(1, 20),
)
def test_a_dynamic_program_finds_nothing_better(rows: list[list[float]], num_nodes: int) -> None:
    heads = independent(np.array(rows))
    grown = MedusaTree.from_choices(grow(heads, num_nodes))
    best = best_length(rows, num_nodes)
    assert grown.num_nodes == num_nodes or best == -np.inf
    if best > -np.inf:
        assert expected_accept_length(grown, heads) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_every_beginning_is_a_tree(seed: int, num_rows: int) -> None:
    ranks = correlated_ranks(seed, num_rows)
    order = grow(joint(ranks, rank_accuracies(ranks, 4), 2.0), 30)
    for end in range(len(order) + 1):
        MedusaTree.from_choices(order[:end])


def test_published_accuracies_reach_the_published_trees() -> None:
    accuracies = published_accuracies()
    np.testing.assert_allclose(accuracies[:, 0], PUBLISHED_TOP_1)
    np.testing.assert_allclose(accuracies[:, :5].sum(axis=1), PUBLISHED_TOP_5)
    heads = independent(accuracies)
    for name in preset_names():
        tree = load_tree(name)
        if not name.startswith("smollm2"):
            assert tree.num_nodes == 64
            grown = MedusaTree.from_choices(grow(heads, 64))
            assert expected_accept_length(grown, heads) >= expected_accept_length(tree, heads)


def test_each_head_is_divided_by_its_own_count() -> None:
    # Fault 4 of the reference implementation: with one count for all, perfect heads look imperfect.
    token_ids = [5, 6, 7, 8]
    drafts = [np.array([token_ids[root + 1 :][:1] or [0]] * 3) for root in range(3)]
    for root, head in [(0, 1), (0, 2), (1, 1)]:
        drafts[root][head] = token_ids[root + 1 + head]
    ranks = ranks_from_drafts(drafts, token_ids, 3)
    assert head_counts(ranks).tolist() == [3, 2, 1]
    assert rank_accuracies(ranks, 1).tolist() == [[1], [1], [1]]
    single_count = (ranks == 0).sum(axis=0) / len(ranks)
    assert single_count.tolist() != [1, 1, 1]


def test_top_k_accuracies_and_joint_shares() -> None:
    ranks = np.array([[0, 0], [1, 0], [0, ABSENT], [0, UNKNOWN]], np.int16)
    assert top_k_accuracies(ranks, 2).tolist() == [[0.75, 1.0], [2 / 3, 2 / 3]]
    joint_shares, products = joint_and_independent(ranks)
    assert joint_shares == [0.75, pytest.approx(1 / 3)]
    assert products == [0.75, pytest.approx(2 / 3 * 2 / 3)]


@settings(max_examples=60, deadline=None)
@given(
    medusa_trees(max_depth=3, max_child=4),
    st.lists(
        st.lists(st.tuples(*[st.integers(ABSENT, 4)] * 3), max_size=12), min_size=1, max_size=4
    ),
)
def test_replay_is_decoding(tree: MedusaTree, replies: list[list[tuple[int, int, int]]]) -> None:
    arrays = [np.array(reply, np.int16).reshape(-1, 3) for reply in replies]
    for array in arrays:
        for head in range(3):
            array[max(0, len(array) - head) :, head] = UNKNOWN
    result = replay(tree, RankTable.from_replies(arrays))
    for array, steps in zip(arrays, result.steps, strict=True):
        position = expected = 0
        while position < len(array):
            paths = [tuple(array[position, :depth].tolist()) for depth in range(4)]
            accepted = [path for path in paths if path in tree.medusa_choices]
            position += 1 + max(map(len, accepted), default=0)
            expected += 1
        assert steps == expected
    assert result.visited.sum() == result.steps.sum()


@given(
    st.lists(st.lists(st.integers(ABSENT, 3), min_size=2, max_size=2), min_size=2, max_size=30),
)
def test_the_most_frequent_paths_make_the_best_tree(rows: list[list[int]]) -> None:
    ranks = [tuple(row) for row in rows]

    def value(paths: Sequence[Node]) -> int:
        return sum(row[: len(path)] == path for row in ranks for path in paths)

    paths = most_frequent_paths(np.array(rows, np.int16), 3)
    assert MedusaTree.from_choices(paths).num_nodes <= 3
    candidates = {row[:depth] for row in ranks for depth in (1, 2) if ABSENT not in row[:depth]}
    for one in candidates:
        for other in candidates - {one}:
            if all(len(p) == 1 or p[:-1] in (one, other) for p in (one, other)):
                assert value(paths) >= value((one, other))


def test_joint_statistics_are_counts_with_a_prior() -> None:
    ranks = np.array([[0, 1], [0, 1], [0, ABSENT], [1, 0], [0, UNKNOWN]], np.int16)
    heads = joint(ranks, np.array([[0.5, 0.25], [0.1, 0.2]]), prior=2.0)
    assert heads(()) == [(4 + 1) / 7, (1 + 0.5) / 7]
    assert heads((0,)) == pytest.approx([0.2 / 5, 2.4 / 5])
    assert heads((1,)) == pytest.approx([1.2 / 3, 0.4 / 3])
    assert heads((9,)) == [0.1, 0.2]  # never seen: independence
    assert heads((0, 1)) == []


def test_joint_statistics_beat_independence_on_replies_not_seen() -> None:
    # Each head is right at the rank at which the one before it was right.
    rng = np.random.default_rng(0)
    rank = rng.integers(ABSENT, 3, (40, 30, 1))
    replies = list(np.broadcast_to(rank, (40, 30, 3)).astype(np.int16))
    table = RankTable.from_replies(replies)
    by_method = {c.method: c for c in search(table, 4, (7,))}
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
    for candidate in search(table, 10, (16,)):
        own_steps = replay(candidate.tree, table).steps
        assert candidate.steps.sum() > own_steps.sum() or candidate.method == "independent"
        assert candidate.tree.num_nodes == 16


def test_fixed_trees_are_replayed_as_they_are() -> None:
    table = table_of(3)
    plain, chain = fixed_candidates(table, [chain_tree(0), chain_tree(2)])
    assert plain.steps.tolist() == table.lengths.tolist()
    assert mean_accept_length(table, plain.steps) == 1
    assert mean_accept_length(table, chain.steps) > 1.2


def test_one_reply_is_too_few() -> None:
    with pytest.raises(CalibrationError, match="1 recorded replies are too few"):
        search(table_of(1), 4, (2,))
