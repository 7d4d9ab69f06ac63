"""Tensors in files of weights."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints.changed_model import QUERY, TOKENS, Tensors, changed_model, compute_logits
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.models.base_model import (
    load_model,
)
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.tensor_source import TensorSource, map_tensors, read_weight_map


def test_a_pickle_of_an_older_torch_is_read(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model = random_model(llama_config())
    torch.save(
        model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    with torch.no_grad():
        assert torch.equal(compute_logits(folder), model(TOKENS).logits)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HARM"],)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harm = tmp_path / "harm"
    monkeypatch.setenv("HARM", str(harm))
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match="more than tensors, which is not safe to load; save"):
        map_tensors(folder / "pytorch_model.bin")
    assert not harm.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "load", [compute_logits, lambda folder: load_model(source_from_name(str(folder)), "auto")]
)
def test_weights_that_are_no_numbers_are_named(
    value: float, load: Callable[[Path], object], tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[f"{QUERY}.weight"][3, 5] = value

    folder = changed_model(tmp_path / "model", spoil)
    with pytest.raises(ExportError, match=f"{QUERY}.weight holds NaN or infinity: the training"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_file_that_the_system_does_not_open_has_its_reason(name: str, tmp_path: Path) -> None:
    # The reader of safetensors calls every such file missing.
    (tmp_path / name).mkdir()
    with pytest.raises(ExportError) as refused:
        map_tensors(tmp_path / name)
    assert str(refused.value) == f"cannot read {tmp_path / name}: Is a directory"


def test_a_tensor_is_read_by_its_key_and_type(tmp_path: Path) -> None:
    weight = torch.randn(3, 4).bfloat16()
    file = tmp_path / "model.safetensors"
    save_file({"a": weight, "b": torch.arange(5)}, file, {"c": "a"})  # c is left out as a copy of a
    assert map_tensors(file).keys() == {"a", "b", "c"} and map_tensors(file, "b").keys() == {"b"}
    for key in ("a", "c"):
        array = TensorSource(file, key).read()
        assert array.dtype.name == "bfloat16"
        assert np.array_equal(array.astype(np.float32), weight.float().numpy())


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors"}, "metadata": {"total_size": 4}}')
    assert read_weight_map(index) == {"a": "one.safetensors"}
    for content in ("{", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}'):
        index.write_text(content)
        with pytest.raises(HeadsError, match=index.name):
            read_weight_map(index, HeadsError)
