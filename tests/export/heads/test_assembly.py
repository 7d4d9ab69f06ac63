"""Files of heads: what is read of them, and what is refused."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints.checkpoint_tensors import HIDDEN, MAP, VOCAB, Tensors, tensors
from support.tiny_models import head_tensors

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.head_checkpoint import heads_from_path
from medusa_trt.export.heads.medusa_heads import MedusaHeads


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
