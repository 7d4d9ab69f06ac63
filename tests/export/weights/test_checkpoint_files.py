"""Files of heads that are damaged, unsafe or something else."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.checkpoint_tensors import save_tensors, tensors
from support.tiny_models import head_tensors

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.loading import heads_from_path
from medusa_trt.export.weights.checkpoint_files import open_checkpoint


@pytest.mark.parametrize("file", ["heads.safetensors", "heads.pt", "heads.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not heads at all", b"PK\x03\x04" * 9])
def test_a_damaged_file_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(HeadsError, match=f"{file}: ") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@settings(max_examples=100)
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
        save_tensors(found, path)
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
        open_checkpoint(tmp_path)
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
        open_checkpoint(path)


def test_where_no_heads_are_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"no heads at .*nowhere: give a \.safetensors or \.pt"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(HeadsError, match=r"holds none of medusa_lm_head\.safetensors"):
        open_checkpoint(tmp_path)
