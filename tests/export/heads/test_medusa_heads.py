"""Heads and the backbone that they are for."""

import pytest
import torch
from support.checkpoints.checkpoint_tensors import (
    HIDDEN,
    MAP,
    VOCAB,
    heads_from_tensors,
    tensors,
)

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.medusa_heads import Linear, MedusaHead, MedusaHeads


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([0, 1, VOCAB], f"holds id {VOCAB}, the backbone's vocabulary has {VOCAB}"),
        ([0, -1, 2], "holds id -1"),
        ([4, 1, 4], "holds an id twice"),
    ],
)
def test_a_token_map_names_distinct_tokens(token_ids: list[int], message: str) -> None:
    head = MedusaHead(blocks=(Linear(torch.eye(HIDDEN)),))
    heads = MedusaHeads((head,), torch.tensor(token_ids))
    with pytest.raises(HeadsError, match=message):
        heads.check_fits(HIDDEN, VOCAB)


def test_heads_of_another_model_do_not_fit() -> None:
    heads = heads_from_tensors(tensors(own=True), "heads")
    heads.check_fits(HIDDEN, VOCAB)
    with pytest.raises(HeadsError, match=f"size {HIDDEN}, the backbone has {HIDDEN + 1}"):
        heads.check_fits(HIDDEN + 1, VOCAB)
    with pytest.raises(HeadsError, match=f"offers {VOCAB} tokens, .* vocabulary has {VOCAB - 1}"):
        heads.check_fits(HIDDEN, VOCAB - 1)
    heads = heads_from_tensors(tensors(own=True) | {"token_map": MAP}, "heads")
    with pytest.raises(HeadsError, match=f"offers {VOCAB} tokens, .* token_map has {len(MAP)}"):
        heads.check_fits(HIDDEN, VOCAB)
