"""Tensors in files of weights."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints.changed_model import Tensors, changed_model
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import (
    load_model,
    open_base_model,
)
from medusa_trt.export.models.source import ModelSource, source_from_name
from medusa_trt.export.weights.streamed_model import supply_weights

TOKENS = torch.arange(40)[None] * 7


QUERY = "model.layers.0.self_attn.q_proj"


def source(folder: Path) -> ModelSource:
    return source_from_name(str(folder))


def logits_of(folder: Path) -> torch.Tensor:
    base = open_base_model(source_from_name(str(folder)))
    with torch.no_grad(), supply_weights(base.model, base.weights):
        logits: torch.Tensor = base.model(TOKENS).logits
    return logits


def test_a_pickle_of_an_older_torch_is_read(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model = random_model(llama_config())
    torch.save(
        model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    with torch.no_grad():
        assert torch.equal(logits_of(folder), model(TOKENS).logits)


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
        open_base_model(source_from_name(str(folder)))
    assert not harm.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("load", [logits_of, lambda folder: load_model(source(folder), "auto")])
def test_weights_that_are_no_numbers_are_named(
    value: float, load: Callable[[Path], object], tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[f"{QUERY}.weight"][3, 5] = value

    folder = changed_model(tmp_path / "model", spoil)
    with pytest.raises(ExportError, match=f"{QUERY}.weight holds NaN or infinity: the training"):
        load(folder)
