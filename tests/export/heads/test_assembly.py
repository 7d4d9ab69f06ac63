"""Heads made of tensors, and tensors that are no heads."""

import pytest
import torch
from support.checkpoints.checkpoint_tensors import (
    HIDDEN,
    MAP,
    VOCAB,
    check_refused,
    tensors,
)
from support.tiny_models import head_tensors

from medusa_trt.export.heads.assembly import heads_from_keys
from medusa_trt.export.heads.key_layouts import recognize


def test_unread_matrices_get_a_shape_and_no_data() -> None:
    found = tensors(num_layers=2, own=True, projection=True, root_map=True)
    recognized = recognize(found, "heads")
    named = {key: found[name] for key, name in recognized.names.items()}
    unread = [key for key in named if key.kind == "weight"]
    heads = heads_from_keys(recognized, named, "heads", unread)
    for index, head in enumerate(heads.heads):
        assert head.unembedding is not None and head.unembedding.is_meta
        assert head.unembedding.shape == (VOCAB, HIDDEN)
        assert all(part.weight.is_meta for part in head.maps)
        for layer, block in enumerate(head.blocks):
            assert block.weight.shape == (HIDDEN, HIDDEN) and block.bias is not None
            assert torch.equal(block.bias, found[f"{index}.{layer}.linear.bias"])


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
