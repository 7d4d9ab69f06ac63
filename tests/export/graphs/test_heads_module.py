"""Heads against a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.checkpoints.checkpoint_tensors import (
    HIDDEN,
    MAP,
    VOCAB,
    Tensors,
    heads_from_tensors,
    tensors,
)
from support.reference.heads import head_logits

from medusa_trt.export.graphs.heads_module import HeadsModule

MAX_LOGIT_DIFFERENCE = 1e-4


def unembedding() -> torch.Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5))


def embedding() -> torch.Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(6))


def as_arrays(found: Tensors) -> dict[str, NDArray[np.generic]]:
    return {key: tensor.numpy() for key, tensor in found.items()}


@settings(max_examples=60)
@given(
    num_heads=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    own=st.booleans(),
    bias=st.booleans(),
    projection=st.booleans(),
    root_map=st.booleans(),
    token_map=st.booleans(),
    shared_bias=st.booleans(),
    is_stacked=st.booleans(),
    batch=st.integers(1, 3),
)
def test_logits_and_drafts_are_the_references(
    num_heads: int,
    num_layers: int,
    own: bool,
    bias: bool,
    projection: bool,
    root_map: bool,
    token_map: bool,
    shared_bias: bool,
    is_stacked: bool,
    batch: int,
) -> None:
    found = tensors(
        num_heads=num_heads,
        num_layers=num_layers,
        own=own,
        bias=bias,
        projection=projection,
        root_map=root_map,
        token_map=token_map,
    )
    added = torch.arange(VOCAB) % 7 / 3 if shared_bias else None
    heads = heads_from_tensors(found, "heads")
    module = HeadsModule(heads, unembedding(), 5, added, embedding(), is_stacked=is_stacked)
    generator = torch.Generator().manual_seed(batch)
    hidden = torch.randn(batch, HIDDEN, generator=generator)
    roots = torch.randint(VOCAB, (batch,), generator=generator)
    expected = head_logits(
        as_arrays(found),
        unembedding().double().numpy(),
        hidden.double().numpy(),
        None if added is None else added.double().numpy(),
        embedding()[roots].double().numpy(),
    )
    logits = module.logits(hidden, roots).numpy()
    assert logits.shape == (num_heads, batch, len(MAP) if token_map else VOCAB)
    assert np.abs(logits - expected).max() <= MAX_LOGIT_DIFFERENCE
    best = np.argsort(-expected, axis=-1)[..., :5].swapaxes(0, 1)
    assert (module(hidden, roots).numpy() == (MAP.numpy()[best] if token_map else best)).all()


def test_log_probabilities_are_those_of_each_heads_distribution() -> None:
    heads = heads_from_tensors(tensors(own=True), "heads")
    module = HeadsModule(heads, unembedding(), 5, returns_logprobs=True)
    hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(0))
    best, logprobs = module(hidden)
    expected = module.logits(hidden).log_softmax(-1).transpose(0, 1)
    torch.testing.assert_close(logprobs, expected.gather(-1, best))
    assert (logprobs.diff() <= 0).all()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_are_not_tied(layer: int) -> None:
    # Fault 2 of the reference implementation: `[ResBlock] * L` is one block L times.
    found = tensors(num_layers=3)
    hidden = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0))

    def logits(changed: Tensors) -> torch.Tensor:
        heads = heads_from_tensors(changed, "heads")
        return HeadsModule(heads, unembedding(), top_k=1).logits(hidden)

    weight = f"1.{layer}.linear.weight"
    before, after = logits(found), logits(found | {weight: found[weight] + 1})
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, True]
    blocks = heads_from_tensors(found, "heads").heads[1].blocks
    assert torch.equal(blocks[layer].weight, found[weight])
