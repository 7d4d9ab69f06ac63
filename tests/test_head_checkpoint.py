"""Reading head checkpoints, and the heads they hold against a slow reference."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference.heads import head_logits
from safetensors.torch import save_file
from tiny_models import head_tensors

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_checkpoint import heads_from_path, heads_from_tensors
from medusa_trt.export.heads import HeadsModule, MedusaHeads

Tensors = dict[str, torch.Tensor]

HIDDEN = 16
VOCAB = 40
MAP = torch.tensor([3, 39, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])
MAX_LOGIT_DIFFERENCE = 1e-4


def tensors(
    *,
    num_heads: int = 3,
    num_layers: int = 1,
    own: bool = False,
    bias: bool = True,
    projection: bool = False,
    root_map: bool = False,
    token_map: bool = False,
) -> Tensors:
    """Heads in the public layout, with this project's extensions if asked for."""
    vocab_size = (len(MAP) if token_map else VOCAB) if own else None
    found = head_tensors(
        num_heads=num_heads, num_layers=num_layers, hidden_size=HIDDEN, vocab_size=vocab_size
    )
    if projection:
        extra = head_tensors(num_heads=num_heads, num_layers=1, hidden_size=HIDDEN, seed=7)
        for head in range(num_heads):
            for kind in ("weight", "bias"):
                found[f"{head}.projection.{kind}"] = extra[f"{head}.0.linear.{kind}"]
    if root_map:
        generator = torch.Generator().manual_seed(8)
        for head in range(num_heads):
            weight = torch.randn(HIDDEN, 2 * HIDDEN, generator=generator) / HIDDEN**0.5
            found[f"{head}.root_map.weight"] = weight
            found[f"{head}.root_map.bias"] = torch.randn(HIDDEN, generator=generator)
    if not bias:
        found = {key: tensor for key, tensor in found.items() if not key.endswith(".bias")}
    return found | ({"token_map": MAP} if token_map else {})


def unembedding() -> torch.Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5))


def embedding() -> torch.Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(6))


def as_arrays(found: Tensors) -> dict[str, NDArray[np.generic]]:
    return {key: tensor.numpy() for key, tensor in found.items()}


def refused(found: Mapping[str, torch.Tensor], message: str) -> None:
    with pytest.raises(HeadsError, match=message) as caught:
        heads_from_tensors(found, "some file")
    assert "some file" in str(caught.value)


@settings(max_examples=60, deadline=None)
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


@pytest.mark.parametrize("file", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
@pytest.mark.parametrize("prefix", ["", "medusa_head.", "base_model.model.medusa_head."])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_public_layout_is_read(
    file: str, prefix: str, own: bool, num_layers: int, bias: bool, tmp_path: Path
) -> None:
    found = tensors(num_heads=5, num_layers=num_layers, own=own, bias=bias)
    save({prefix + key: tensor for key, tensor in found.items()}, tmp_path / file)
    for path in (tmp_path, tmp_path / file):
        heads = heads_from_path(path)
        assert (heads.num_heads, heads.num_layers, heads.hidden_size) == (5, num_layers, HIDDEN)
        assert as_public(heads).keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in as_public(heads).items())
        heads.check_fits(HIDDEN, VOCAB)


def save(found: Tensors, path: Path) -> Path:
    if path.suffix == ".pt":
        torch.save(found, path)
    else:
        save_file(found, path)
    return path


def as_public(heads: MedusaHeads) -> Tensors:
    """The heads' tensors by their public names."""
    found = {}
    for index, head in enumerate(heads.heads):
        for layer, block in enumerate(head.blocks):
            found[f"{index}.{layer}.linear.weight"] = block.weight
            if block.bias is not None:
                found[f"{index}.{layer}.linear.bias"] = block.bias
        if head.unembedding is not None:
            found[f"{index}.{len(head.blocks)}.weight"] = head.unembedding
    return found


def test_half_precision_and_parameters_become_plain_floats(tmp_path: Path) -> None:
    found: Tensors = {
        key: torch.nn.Parameter(tensor.half())
        for key, tensor in tensors(own=True, token_map=False).items()
    }
    heads = heads_from_path(save(found, tmp_path / "heads.pt"))
    read = as_public(heads)
    assert all(torch.equal(read[key], found[key].float()) for key in found)
    assert not any(tensor.requires_grad for tensor in read.values())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_extensions_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    found = tensors(own=True, projection=True, root_map=True, token_map=True)
    file = save(found | {"token_map": MAP.to(dtype)}, tmp_path / "heads.safetensors")
    heads = heads_from_path(file)
    assert heads.token_map is not None and heads.token_map.dtype == torch.int64
    assert heads.token_map.tolist() == MAP.tolist()
    assert heads.draft_vocab_size(VOCAB) == len(MAP)
    heads.check_fits(HIDDEN, VOCAB)
    for index, head in enumerate(heads.heads):
        assert head.projection is not None and head.projection.bias is not None
        assert torch.equal(head.projection.weight, found[f"{index}.projection.weight"])
        assert torch.equal(head.projection.bias, found[f"{index}.projection.bias"])
        assert head.root_map is not None and head.root_map.bias is not None
        assert torch.equal(head.root_map.weight, found[f"{index}.root_map.weight"])
        assert torch.equal(head.root_map.bias, found[f"{index}.root_map.bias"])
    assert heads.reads_root


def test_the_tensors_win_over_the_config(tmp_path: Path) -> None:
    # The released v1.3 configs state 2 heads while the file holds 5.
    save(tensors(num_heads=5), tmp_path / "medusa_lm_head.pt")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))
    with pytest.warns(UserWarning, match="medusa_num_heads 2 where the tensors have 5") as caught:
        assert heads_from_path(tmp_path).num_heads == 5
    assert len(caught) == 1 and "medusa_num_layers" not in str(caught[0].message)
    config.write_text(json.dumps({"medusa_num_heads": 5, "medusa_num_layers": 1, "other": 3}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads_from_path(tmp_path)
    config.write_text("{")
    with pytest.raises(HeadsError, match=r"config\.json is not JSON"):
        heads_from_path(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "0.1.linear.scale",
        "0.weight",
        "00.0.linear.weight",
        "٠.0.linear.weight",  # noqa: RUF001
        "0.0.linear.weight\n",
        "9" * 5000 + ".0.linear.weight",
        "d2t",
    ],
)
def test_an_unknown_key_is_named(key: str) -> None:
    refused(tensors() | {key: torch.zeros(HIDDEN, HIDDEN)}, "no head layout has: .")


def test_the_same_key_with_and_without_a_prefix_is_refused() -> None:
    found = tensors()
    refused(
        found | {"medusa_head.0.0.linear.bias": torch.zeros(HIDDEN)}, r"0\.0\.linear\.bias twic"
    )


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
    refused(left, message)


def test_heads_of_different_depth_or_size_are_refused() -> None:
    found, deeper = tensors(), tensors(num_layers=2)
    more = {key: tensor for key, tensor in deeper.items() if key.startswith("2.")}
    refused(found | more, "head 2 differs")
    wider = head_tensors(num_heads=3, num_layers=1, hidden_size=8, vocab_size=None)
    more = {key: tensor for key, tensor in wider.items() if key.startswith("1.")}
    refused(found | more, "head 1 differs")
    found = tensors(own=True)
    refused(found | {"1.1.weight": found["1.1.weight"][1:]}, "head 1 differs")


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
    refused(found | {key: torch.zeros(shape)}, rf"{key} is {text}, expected \(")


def test_weights_that_are_no_floats_are_refused() -> None:
    found = tensors()
    key = "1.0.linear.weight"
    refused(found | {key: found[key].to(torch.int8)}, rf"{key} is torch\.int8, expected floating")


@pytest.mark.parametrize(
    "token_map", [MAP.float(), MAP[None], MAP[0], MAP[:0], MAP.bool(), MAP.to(torch.complex64)]
)
def test_a_token_map_is_a_vector_of_integers(token_map: torch.Tensor) -> None:
    refused(tensors() | {"token_map": token_map}, r"token_map is .*, expected \(ids,\) of integers")


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([0, 1, VOCAB], f"holds id {VOCAB}, the backbone's vocabulary has {VOCAB}"),
        ([0, -1, 2], "holds id -1"),
        ([4, 1, 4], "holds an id twice"),
    ],
)
def test_a_token_map_names_distinct_tokens(token_ids: list[int], message: str) -> None:
    heads = heads_from_tensors(tensors() | {"token_map": torch.tensor(token_ids)}, "heads")
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


@pytest.mark.parametrize("file", ["heads.safetensors", "heads.pt", "heads.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not heads at all", b"PK\x03\x04" * 9])
def test_a_damaged_file_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(HeadsError, match=f"{file}: ") as caught:
        heads_from_path(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_is_heads_or_an_error(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix = "safetensors" if form == "safetensors" else "pt"
    path = tmp_path_factory.getbasetemp() / f"damaged-{form}.{suffix}"
    found = head_tensors(num_heads=1, num_layers=1, hidden_size=4, vocab_size=None)
    if form == "legacy":
        torch.save(found, path, _use_new_zipfile_serialization=False)
    else:
        save(found, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert heads_from_path(path).num_heads == 1
        except HeadsError as error:
            assert "\n" not in str(error)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(legacy: bool, tmp_path: Path) -> None:
    sign, path = tmp_path / "sign", tmp_path / "medusa_lm_head.pt"
    content = {**tensors(), "extra": Bomb(sign)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(HeadsError, match=r"more than tensors.* not safe to load") as caught:
        heads_from_path(tmp_path)
    assert not sign.exists()
    # torch's own text says how to run it.
    assert "weights_only" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert sign.exists(), "the file would have run code"


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"state": tensors()}, {0: torch.zeros(2)}, torch.zeros(2), None]
)
def test_a_pickle_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "heads.pt"
    torch.save(content, path)
    with pytest.raises(HeadsError, match="does not hold a dictionary of tensors"):
        heads_from_path(path)


def test_where_no_heads_are_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"no heads at .*nowhere: give a \.safetensors or \.pt"):
        heads_from_path(tmp_path / "nowhere")
    with pytest.raises(HeadsError, match=r"holds none of medusa_lm_head\.safetensors"):
        heads_from_path(tmp_path)
