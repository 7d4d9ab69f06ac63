"""Tree growth against dynamic programs and all trees."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.measurements.ranks import correlated_ranks
from support.reference.tree_program import all_trees, best_length, expected_length

from medusa_trt.calibration.trees.growth import (
    Node,
    find_most_frequent_paths,
    grow,
)
from medusa_trt.calibration.trees.replay import ABSENT
from medusa_trt.tree_configs import MedusaTree, list_presets, load_tree

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
    trees = all_trees(len(rows), len(rows[0]), num_nodes)
    grown = grow(rows, num_nodes)
    if trees:
        longest = max(expected_length(rows, tree) for tree in trees)
        assert expected_length(rows, grown) == pytest.approx(longest)
        assert best_length(rows, num_nodes) == pytest.approx(longest)
    else:
        assert len(grown) + 1 < num_nodes and best_length(rows, num_nodes) == -np.inf


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.001, 0.2), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(1, 20),
)
def test_a_dynamic_program_finds_nothing_better(rows: list[list[float]], num_nodes: int) -> None:
    grown = grow(rows, num_nodes)
    best = best_length(rows, num_nodes)
    assert len(grown) + 1 == num_nodes or best == -np.inf
    if best > -np.inf:
        assert expected_length(rows, grown) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_every_beginning_is_a_tree(seed: int, num_rows: int) -> None:
    ranks = correlated_ranks(seed, num_rows)
    order = find_most_frequent_paths(ranks, 30)
    for end in range(len(order) + 1):
        MedusaTree.from_choices(order[:end])


def test_published_accuracies_reach_the_published_trees() -> None:
    accuracies = published_accuracies()
    np.testing.assert_allclose(accuracies[:, 0], PUBLISHED_TOP_1)
    np.testing.assert_allclose(accuracies[:, :5].sum(axis=1), PUBLISHED_TOP_5)
    longest = expected_length(accuracies, grow(accuracies.tolist(), 64))
    for name in list_presets():
        tree = load_tree(name)
        if not name.startswith("smollm2"):
            assert tree.num_nodes == 64
            assert longest >= expected_length(accuracies, tree.medusa_choices)


@given(
    st.lists(st.lists(st.integers(ABSENT, 3), min_size=2, max_size=2), min_size=2, max_size=30),
)
def test_the_most_frequent_paths_make_the_best_tree(rows: list[list[int]]) -> None:
    ranks = [tuple(row) for row in rows]

    def value(paths: Sequence[Node]) -> int:
        return sum(row[: len(path)] == path for row in ranks for path in paths)

    paths = find_most_frequent_paths(np.array(rows, np.int16), 3)
    assert MedusaTree.from_choices(paths).num_nodes <= 3
    candidates = {row[:depth] for row in ranks for depth in (1, 2) if ABSENT not in row[:depth]}
    for one in candidates:
        for other in candidates - {one}:
            if all(len(p) == 1 or p[:-1] in (one, other) for p in (one, other)):
                assert value(paths) >= value((one, other))
