"""Heads that draft from frequent tokens only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.checkpoint_tensors import HIDDEN, MAP, VOCAB, heads_from_tensors, tensors
from support.tiny_models import save_tiny_heads
from transformers import AutoTokenizer

from medusa_trt.errors import HeadsError
from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.export.heads.draft_vocabulary import count_tokens, keep_frequent_tokens
from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHeads


def counts_of(*token_ids: int) -> np.ndarray:
    """Counts that fall in the order of these tokens; others have none."""
    counts = np.zeros(VOCAB)
    counts[list(token_ids)] = range(len(token_ids), 0, -1)
    return counts


def logits_of(heads: MedusaHeads) -> torch.Tensor:
    shared = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(2))
    return HeadsModule(heads, shared, 1).logits(hidden)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("token_map", [False, True])
def test_the_logits_of_the_tokens_that_stay_are_the_same(own: bool, token_map: bool) -> None:
    heads = heads_from_tensors(tensors(own=own, token_map=token_map), "heads")
    restricted = keep_frequent_tokens(heads, counts_of(17, 2, 39, 1), 3)
    restricted.check_fits(HIDDEN, VOCAB)
    assert restricted.token_map is not None
    assert set(restricted.token_map.tolist()) == {17, 2, 39}
    offered = MAP if token_map else torch.arange(VOCAB)
    columns = [offered.tolist().index(token) for token in restricted.token_map]
    torch.testing.assert_close(logits_of(restricted), logits_of(heads)[..., columns])


def test_tokens_without_counts_come_in_the_order_of_their_ids() -> None:
    heads = heads_from_tensors(tensors(own=True), "heads")
    token_map = keep_frequent_tokens(heads, counts_of(20), 3).token_map
    assert token_map is not None and token_map.tolist() == [0, 1, 20]


def test_a_common_unembedding_stays_common() -> None:
    heads = heads_from_tensors(tensors(own=True), "heads")
    first = heads.heads[0].unembedding
    tied = MedusaHeads(
        tuple(type(head)(head.blocks, head.projection, first) for head in heads.heads)
    )
    assert keep_frequent_tokens(tied, counts_of(4), 2).common_unembedding is not None


def test_matrices_that_are_not_read_yet_stay_so(tmp_path: Path) -> None:
    path = save_tiny_heads(tmp_path / "heads.safetensors", tensors(own=True))
    counts = counts_of(7, 3)
    whole = keep_frequent_tokens(load_heads(path).heads, counts, 2)
    lazy = keep_frequent_tokens(load_heads(path, read_all=False).heads, counts, 2)
    matrices = [head.unembedding for head in lazy.heads]
    assert all(matrix is not None and matrix.is_meta and len(matrix) == 2 for matrix in matrices)
    for tensor, head in zip(lazy.unread["unembedding"], whole.heads, strict=True):
        assert head.unembedding is not None
        np.testing.assert_array_equal(tensor.stored(), head.unembedding.numpy())


@pytest.mark.parametrize("number", [0, VOCAB + 1])
def test_an_impossible_number_is_refused(number: int) -> None:
    heads = heads_from_tensors(tensors(own=True), "heads")
    with pytest.raises(HeadsError, match=f"--draft-vocabulary is {number}: .* {VOCAB} tokens"):
        keep_frequent_tokens(heads, counts_of(), number)


def test_tokens_are_counted_in_a_text_and_in_replies(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = tmp_path / "text.txt"
    text.write_text("one two one")
    expected = np.bincount(
        tokenizer("one two one", add_special_tokens=False)["input_ids"], minlength=len(tokenizer)
    )
    np.testing.assert_array_equal(count_tokens(tokenizer, len(tokenizer), text), expected)
    save_file(
        {
            "token_ids": torch.tensor([5, 6, 7, 7], dtype=torch.int32),
            "turns": torch.tensor([0, 1, 1, 2], dtype=torch.int32),
        },
        tmp_path / "shard-00000.safetensors",
    )
    assert count_tokens(tokenizer, 8, tmp_path).tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
    with pytest.raises(HeadsError, match="holds token 7, the model has 7"):
        count_tokens(tokenizer, 7, tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(HeadsError, match="holds no training data"):
        count_tokens(tokenizer, 8, empty)


def test_the_packaged_words_count_common_tokens_most(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    counts = count_tokens(tokenizer, len(tokenizer), None)
    (the,) = tokenizer(" the", add_special_tokens=False)["input_ids"][:1]
    assert counts.sum() > 100_000
    assert counts[the] > np.median(counts)
