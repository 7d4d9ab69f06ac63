"""Accuracy of heads against a reference that compares token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.reference import accuracy as reference

from medusa_trt.calibration.trees.replay import ABSENT, UNKNOWN, ranks_from_drafts
from medusa_trt.errors import TrainingError
from medusa_trt.training.accuracy import NUM_CANDIDATES, Accuracy, ranks_from_logits

NUM_HEADS, VOCAB = 3, 16


@st.composite
def replies(draw: st.DrawFn) -> tuple[list[reference.Reply], list[NDArray[np.float32]]]:
    """Replies with the logits of each head after each token, often right at once."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    all_replies, all_logits = [], []
    for length in lengths:
        token_ids = rng.integers(0, VOCAB, length)
        logits = rng.permuted(
            np.broadcast_to(np.arange(VOCAB), (NUM_HEADS, length, VOCAB)), axis=-1
        ).astype(np.float32)
        for head in range(NUM_HEADS):
            for root in range(length - 1 - head):
                if rng.random() < 0.7:
                    logits[head, root, token_ids[root + 1 + head]] += rng.integers(0, VOCAB) + 0.5
        candidates = logits.argsort(axis=-1)[..., ::-1][..., :NUM_CANDIDATES]
        all_replies.append(
            reference.Reply(token_ids.tolist(), candidates.transpose(1, 0, 2).tolist())
        )
        all_logits.append(logits)
    return all_replies, all_logits


def ranks_of(reply: reference.Reply, logits: NDArray[np.float32]) -> NDArray[np.int16]:
    """What training makes of a reply: a row for each token but the last."""
    length = len(reply.token_ids)
    columns = np.full((length, NUM_HEADS), -1)
    for root in range(length):
        for head in range(min(NUM_HEADS, length - 1 - root)):
            columns[root, head] = reply.token_ids[root + 1 + head]
    wanted = torch.from_numpy(columns)
    return ranks_from_logits(torch.from_numpy(logits), wanted, wanted >= 0)[:-1]


@given(replies())
def test_ranks_are_those_of_calibration(
    case: tuple[list[reference.Reply], list[NDArray[np.float32]]],
) -> None:
    for reply, logits in zip(*case, strict=True):
        drafts = [np.array(candidates) for candidates in reply.candidates[:-1]]
        expected = ranks_from_drafts(drafts, reply.token_ids, NUM_HEADS)
        assert ranks_of(reply, logits).tolist() == expected.tolist()


@given(replies(), st.integers(2, 9))
def test_accuracy_is_what_comparing_tokens_gives(
    case: tuple[list[reference.Reply], list[NDArray[np.float32]]], num_nodes: int
) -> None:
    accuracy = Accuracy.from_ranks([ranks_of(*pair) for pair in zip(*case, strict=True)], num_nodes)
    all_replies = case[0]
    half = len(all_replies) // 2
    for k, shares in ((1, accuracy.top_1), (5, accuracy.top_5), (10, accuracy.top_10)):
        expected = [reference.top_k_accuracy(all_replies, head, k) for head in range(NUM_HEADS)]
        assert list(shares) == expected
    paths = reference.find_most_frequent_paths(all_replies[:half] or all_replies, num_nodes - 1)
    assert sorted(accuracy.tree.medusa_choices) == sorted(paths)
    assert accuracy.tokens_per_step == reference.tokens_per_step(all_replies[half:], set(paths))
    assert accuracy.num_tokens == sum(len(reply.token_ids) for reply in all_replies)


def test_each_head_is_measured_over_its_own_positions() -> None:
    accuracy = Accuracy.from_ranks(
        [np.array([[0, 2], [4, ABSENT], [6, UNKNOWN]], np.int16)], num_nodes=2
    )
    assert accuracy.top_1 == pytest.approx((1 / 3, 0))
    assert accuracy.top_5 == pytest.approx((2 / 3, 1 / 2))
    with pytest.raises(TrainingError, match="no held-out replies"):
        Accuracy.from_ranks([], 8)


def test_a_token_that_the_draft_vocabulary_lacks_is_a_miss() -> None:
    logits = torch.tensor([[[0.1, 3.0, 2.0], [5.0, 4.0, 3.0], [1.0, 2.0, 3.0]]])
    columns = torch.tensor([[2], [-1], [-1]])
    ranks = ranks_from_logits(logits, columns, torch.tensor([[True], [True], [False]]))
    assert ranks.tolist() == [[1], [ABSENT], [UNKNOWN]]
