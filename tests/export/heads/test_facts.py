"""Facts about heads, and changes to their unembeddings."""

import pytest
import torch
from support.checkpoints.checkpoint_tensors import (
    HIDDEN,
    MAP,
    VOCAB,
    heads_from_tensors,
    tensors,
)

from medusa_trt.export.heads.facts import facts_from_heads, replace_unembeddings
from medusa_trt.export.heads.medusa_heads import MedusaHead, MedusaHeads


@pytest.mark.parametrize("has_map", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_the_vocabulary_is_that_of_the_unembeddings_or_of_the_backbone(
    own: bool, has_map: bool
) -> None:
    heads = heads_from_tensors(tensors(num_layers=2, own=own, token_map=has_map), "heads")
    facts = facts_from_heads(heads, None, "base")
    assert (facts.num_heads, facts.num_layers, facts.hidden_size) == (3, 2, HIDDEN)
    assert facts.unembedding == ("own" if own else "shared")
    assert facts.vocab_size == (VOCAB if own and not has_map else None)
    assert facts.draft_vocab_size == (len(MAP) if has_map else VOCAB if own else None)
    assert (facts.has_token_map, facts.has_biases, facts.base_model) == (has_map, True, "base")
    assert facts_from_heads(heads, VOCAB, None).vocab_size == VOCAB


def test_parts_that_few_formats_hold_are_named() -> None:
    plain = facts_from_heads(heads_from_tensors(tensors(bias=False), "heads"), None, None)
    assert not (plain.has_biases or plain.has_projection or plain.has_root_map)
    heads = heads_from_tensors(tensors(projection=True, root_map=True), "heads")
    full = facts_from_heads(heads, None, None)
    assert full.has_projection and full.has_root_map


def test_a_common_unembedding_is_changed_once_and_stays_common() -> None:
    blocks = heads_from_tensors(tensors(), "heads").heads
    weight = torch.randn(VOCAB, HIDDEN)
    heads = MedusaHeads(tuple(MedusaHead(head.blocks, unembedding=weight) for head in blocks))
    assert facts_from_heads(heads, None, None).unembedding == "common"
    calls = []

    def double(unembedding: torch.Tensor) -> torch.Tensor:
        calls.append(unembedding)
        return 2 * unembedding

    changed = replace_unembeddings(heads, double)
    assert len(calls) == 1 and changed.common_unembedding is not None
    assert torch.equal(changed.common_unembedding, 2 * weight)
    shared = replace_unembeddings(MedusaHeads(blocks), double)
    assert len(calls) == 1 and all(head.unembedding is None for head in shared.heads)
