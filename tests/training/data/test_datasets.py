"""Batches of the Trainer's datasets against loops over tokens."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reply_rows import VOCAB, make_rule, random_rows

from medusa_trt.training.data.datasets import FeatureRows, PaddedConversations, count_rows
from medusa_trt.training.data.rows import LabelledTokens


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1))
def test_rows_are_the_reply_tokens_that_another_one_follows(lengths: list[int]) -> None:
    rows, rule = random_rows(lengths), make_rule()
    assert rows.features is not None
    data = FeatureRows(rows, rule)
    starts = [sum(lengths[:reply]) for reply in range(len(lengths))]
    expected = [
        start + place
        for start, length in zip(starts, lengths, strict=True)
        for place in range(length - 1)
    ]
    assert len(data) == data.num_rows == len(expected)
    order = list(range(len(expected)))[::-1]
    batch = data.__getitems__(order)
    assert count_rows(batch) == len(expected)
    for row, place in enumerate(order):
        source = expected[place]
        assert torch.equal(batch["hidden"][row], rows.features.hidden[source])
        assert batch["root_ids"][row] == rows.token_ids[source]
        alone = data[place]
        assert (
            alone.keys() == batch.keys() == {"hidden", "root_ids", "columns", "weights", "exists"}
        )
        assert all(torch.equal(batch[name][row], alone[name][0]) for name in batch)
        # The first head drafts the token after the root, which exists in every row.
        assert batch["exists"][row, 0] and batch["columns"][row, 0, 0] == rows.token_ids[source + 1]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 9),
)
def test_conversations_are_cut_and_padded_on_the_right(
    labels: list[list[int]], max_length: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    conversations = []
    for turns in labels:
        ids = torch.randint(1, VOCAB, (len(turns),), generator=generator, dtype=torch.int32)
        conversations.append(LabelledTokens(ids, torch.tensor(turns, dtype=torch.int32), None))
    kept = [
        (one.token_ids.tolist()[:max_length], one.turns.tolist()[:max_length])
        for one in conversations
        if any(one.turns.tolist()[:max_length])
    ]
    data = PaddedConversations(conversations, max_length)
    assert len(data) == len(kept)
    followed = [sum(a == b > 0 for a, b in pairwise(turns)) for _, turns in kept]
    assert data.num_rows == sum(followed)
    if not kept:
        return
    batch = data.__getitems__(list(range(len(kept))))
    assert count_rows(batch) == sum(followed)
    size = max(len(ids) for ids, _ in kept)
    for row, (token_ids, turns) in enumerate(kept):
        padding = [0] * (size - len(token_ids))
        assert batch["token_ids"][row].tolist() == token_ids + padding
        assert batch["turns"][row].tolist() == turns + padding
        assert batch["attention_mask"][row].tolist() == [1] * len(token_ids) + padding
    assert data[0]["token_ids"].tolist() == [kept[0][0]]
