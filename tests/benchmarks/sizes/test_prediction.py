"""Times of all layers from few, and the speed of trees from step times."""

import pytest
from sizes.prediction import (
    VICUNA_7B_TOP_K,
    expect_length,
    predict,
    rank_accuracies,
    scale_to_layers,
)

from medusa_trt.tree_configs import load_tree


def test_a_linear_cost_is_extended_exactly() -> None:
    def cost(num_layers: int) -> float:
        return 2.5 + 0.75 * num_layers

    for num_cut in (2, 5):
        assert scale_to_layers(cost(1), cost(num_cut), num_cut, 32) == pytest.approx(cost(32))
    assert scale_to_layers(3, 5, 2, 1) == 3
    assert scale_to_layers(3, 5, 2, 2) == 5


def test_ranks_are_differences_of_the_published_shares() -> None:
    accuracies = rank_accuracies(VICUNA_7B_TOP_K)
    for ranks, shares in zip(accuracies, VICUNA_7B_TOP_K, strict=True):
        assert ranks[0] == shares[0] and sum(ranks) == pytest.approx(shares[-1])
        assert ranks == sorted(ranks, reverse=True)


def test_the_length_of_a_tree_sums_its_paths() -> None:
    accuracies = [[0.5, 0.25], [0.5, 0.25]]
    assert expect_length(accuracies, []) == 1
    assert expect_length(accuracies, [(0,), (1,), (0, 0)]) == 1 + 0.5 + 0.25 + 0.25
    published = [path for path in load_tree("mc_sim_7b_63").medusa_choices if max(path) < 5]
    assert 2 < expect_length(rank_accuracies(VICUNA_7B_TOP_K), published) < 2.6


def test_a_larger_tree_pays_only_while_its_step_is_cheap() -> None:
    accuracies = [[0.5, 0.25], [0.5, 0.25]]
    plain, small, large = predict({1: 10.0, 2: 11.0, 4: 40.0}, 1.0, accuracies)
    assert (plain.num_nodes, plain.length, plain.step_ms, plain.speedup) == (1, 1, 10, 1)
    assert small.length == 1.5 and small.step_ms == 12 and small.speedup == 1.25
    assert large.length == 2 and large.step_ms == 41 and large.speedup < small.speedup
