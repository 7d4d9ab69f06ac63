"""Heads against a slow reference, and tensors that are no heads."""

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
    check_refused,
    heads_from_tensors,
    tensors,
)
from support.reference.heads import head_logits
from support.tiny_models import head_tensors

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
    module = HeadsModule(heads, unembedding(), 5, added, embedding())
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


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("1.", r"heads \[0, 2\]: expected 0, 1, 2"),
        ("0.", r"heads \[1, 2\]"),
        ("1.0.linear.weight", r"lacks 1\.0\.linear\.weight"),
        ("1.1.linear", r"head 1 has 1 whole layers.*: 1\.2\.linear\.bias, 1\.2\.linear\.weight"),
        ("1.1.linear.weight", r"head 1 .* belong: 1\.1\.linear\.bias"),
        ("2.2.linear.weight", r"head 2 .* belong: 2\.2\.linear\.bias, 2\.3\.weight"),
        ("2.2.linear", r"head 2 .* belong: 2\.3\.weight"),
        ("1.projection.weight", r"head 1 .* belong: 1\.projection\.bias"),
        ("1.projection", "head 1 differs from head 0"),
        ("1.projection.bias", "head 1 differs from head 0"),
        ("1.root_map.weight", r"head 1 .* belong: 1\.root_map\.bias"),
        ("1.root_map", "head 1 differs from head 0"),
        ("2.1.linear.bias", "head 2 differs from head 0"),
        ("2.3.weight", "head 2 differs from head 0"),
        ("", r"holds heads \[\]"),
    ],
)
def test_a_missing_key_is_named(missing: str, message: str) -> None:
    found = tensors(num_layers=3, own=True, projection=True, root_map=True)
    left = {key: tensor for key, tensor in found.items() if not key.startswith(missing)}
    assert len(left) < len(found)
    check_refused(left, message)


def test_heads_of_different_depth_or_size_are_refused() -> None:
    found, deeper = tensors(), tensors(num_layers=2)
    more = {key: tensor for key, tensor in deeper.items() if key.startswith("2.")}
    check_refused(found | more, "head 2 differs")
    wider = head_tensors(num_heads=3, num_layers=1, hidden_size=8, vocab_size=None)
    more = {key: tensor for key, tensor in wider.items() if key.startswith("1.")}
    check_refused(found | more, "head 1 differs")
    found = tensors(own=True)
    check_refused(found | {"1.1.weight": found["1.1.weight"][1:]}, "head 1 differs")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("0.0.linear.weight", (HIDDEN, HIDDEN + 1)),
        ("0.0.linear.weight", (HIDDEN,)),
        ("0.0.linear.weight", ()),
        ("1.1.linear.weight", (HIDDEN + 1, HIDDEN + 1)),
        ("1.0.linear.bias", (HIDDEN + 1,)),
        ("1.0.linear.bias", (1, HIDDEN)),
        ("1.0.linear.bias", ()),
        ("2.projection.weight", (HIDDEN, 1)),
        ("2.projection.bias", (1,)),
        ("2.root_map.weight", (HIDDEN, HIDDEN)),
        ("2.root_map.bias", (2 * HIDDEN,)),
        ("2.2.weight", (VOCAB, HIDDEN - 1)),
        ("2.2.weight", (VOCAB,)),
        ("2.2.weight", (1, VOCAB, HIDDEN)),
    ],
)
def test_a_misshapen_tensor_is_named(key: str, shape: tuple[int, ...]) -> None:
    found = tensors(num_layers=2, own=True, projection=True, root_map=True)
    text = str(shape).replace("(", r"\(").replace(")", r"\)")
    check_refused(found | {key: torch.zeros(shape)}, rf"{key} is {text}, expected \(")


def test_weights_that_are_no_floats_are_refused() -> None:
    found = tensors()
    key = "1.0.linear.weight"
    check_refused(
        found | {key: found[key].to(torch.int8)}, rf"{key} is torch\.int8, expected floating"
    )


@pytest.mark.parametrize(
    "token_map", [MAP.float(), MAP[None], MAP[0], MAP[:0], MAP.bool(), MAP.to(torch.complex64)]
)
def test_a_token_map_is_a_vector_of_integers(token_map: torch.Tensor) -> None:
    check_refused(
        tensors() | {"token_map": token_map}, r"token_map is .*, expected \(ids,\) of integers"
    )
