"""Accuracies of heads from ranks that are made by hand."""

import numpy as np
import pytest

from medusa_trt.calibration.trees.head_accuracy import (
    compare_with_independence,
    compute_top_k_accuracies,
    count_samples,
)
from medusa_trt.calibration.trees.replay import (
    ABSENT,
    UNKNOWN,
    ranks_from_drafts,
)


def test_each_head_is_divided_by_its_own_count() -> None:
    # Fault 4 of the reference implementation: with one count for all, perfect heads look imperfect.
    token_ids = [5, 6, 7, 8]
    drafts = [np.array([token_ids[root + 1 :][:1] or [0]] * 3) for root in range(3)]
    for root, head in [(0, 1), (0, 2), (1, 1)]:
        drafts[root][head] = token_ids[root + 1 + head]
    ranks = ranks_from_drafts(drafts, token_ids, 3)
    assert count_samples(ranks).tolist() == [3, 2, 1]
    assert compute_top_k_accuracies(ranks, 1).tolist() == [[1], [1], [1]]
    single_count = (ranks == 0).sum(axis=0) / len(ranks)
    assert single_count.tolist() != [1, 1, 1]


def test_top_k_accuracies_and_joint_shares() -> None:
    ranks = np.array([[0, 0], [1, 0], [0, ABSENT], [0, UNKNOWN]], np.int16)
    assert compute_top_k_accuracies(ranks, 2).tolist() == [[0.75, 1.0], [2 / 3, 2 / 3]]
    joint_shares, products = compare_with_independence(ranks)
    assert joint_shares == [0.75, pytest.approx(1 / 3)]
    assert products == [0.75, pytest.approx(2 / 3 * 2 / 3)]
