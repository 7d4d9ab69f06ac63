"""Targets of the heads, and the draft vocabulary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reply_rows import VOCAB, make_rule, random_rows

from medusa_trt.training.data.rows import ReplyRows
from medusa_trt.training.data.targets import DraftVocabulary


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    soft_weight=st.sampled_from([0.0, 0.8, 1.0]),
    kept=st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1).map(sorted),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_targets_are_the_teachers_and_the_text_of_the_same_reply(
    lengths: list[int], soft_weight: float, kept: list[int] | None, seed: int
) -> None:
    rows, num_heads = random_rows(lengths, seed), 3
    assert rows.features is not None
    targets = make_rule(num_heads, soft_weight, kept).make_targets(rows, torch.arange(len(rows)))
    vocabulary = list(range(VOCAB)) if kept is None else kept
    ends = np.cumsum(lengths)
    for row in range(len(rows)):
        end = int(ends[np.searchsorted(ends, row, side="right")])
        for head in range(num_heads):
            ahead = row + 1 + head
            assert bool(targets.exists[row, head]) == (ahead < end)
            expected: dict[int, float] = {}
            if ahead < end:
                best = rows.features.top_logprobs[ahead].double().exp()
                pairs = zip(rows.features.top_ids[ahead].tolist(), best / best.sum(), strict=True)
                weighted = [(token, soft_weight * float(share)) for token, share in pairs]
                for token, weight in [*weighted, (int(rows.token_ids[ahead]), 1 - soft_weight)]:
                    if token in vocabulary and weight:
                        column = vocabulary.index(token)
                        expected[column] = expected.get(column, 0.0) + weight
            actual: dict[int, float] = {}
            for column, weight in zip(
                targets.columns[row, head].tolist(),
                targets.weights[row, head].tolist(),
                strict=True,
            ):
                if weight:
                    actual[column] = actual.get(column, 0.0) + weight
            assert actual == pytest.approx(expected, abs=1e-5)


def test_the_draft_vocabulary_is_counted_in_replies() -> None:
    rows = ReplyRows(torch.tensor([5, 5, 9, 2, 9, 5]), torch.zeros(6, dtype=torch.int64))
    vocabulary = DraftVocabulary.from_rows(rows, 2, 12)
    assert vocabulary.token_map is not None and vocabulary.token_map.tolist() == [5, 9]
    assert [int(c) for c in vocabulary.make_columns()[[5, 9, 2]]] == [0, 1, -1]
    assert DraftVocabulary.from_rows(rows, 12, 12).token_map is None
