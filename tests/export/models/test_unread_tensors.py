"""Tensors that a model has no place for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints.changed_model import QUERY, TOKENS, Tensors, changed_model, compute_logits
from support.tiny_models import llama_config, random_model

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import (
    load_base_model,
    open_base_model,
)
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.models.unread_tensors import refuse_unread


def adding(name: str, value: float, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.full(shape, value)})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (f"{QUERY}.bias", (64,)),
        (f"{QUERY}.weight_scale", (1,)),
        ("model.layers.0.self_attn.q_norm.weight", (16,)),
        ("lm_head.bias", (300,)),
    ],
)
@pytest.mark.parametrize("load", [open_base_model, load_base_model])
def test_weights_that_the_config_does_not_mention_are_refused(
    name: str, sizes: tuple[int, ...], load: Callable[[Any], object], tmp_path: Path
) -> None:
    folder = changed_model(tmp_path / "model", adding(name, 2.0, *sizes))
    with pytest.raises(ExportError, match=f"model of its config does not use: {name}; correct"):
        load(source_from_name(str(folder)))


@pytest.mark.parametrize(
    "change",
    [
        adding(f"{QUERY}.bias", 0.0, 64),
        adding("model.layers.0.self_attn.rotary_emb.inv_freq", 1.0, 8),
        adding("model.layers.2.mlp.up_proj.weight", 1.0, 96, 64),
        adding("vision_tower.patch.bias", 1.0, 8),
    ],
)
def test_what_does_not_belong_to_the_model_changes_nothing(
    change: Callable[[Tensors], None], tmp_path: Path
) -> None:
    folder = changed_model(tmp_path / "model", change)
    with torch.no_grad():
        expected = random_model(llama_config())(TOKENS).logits
    assert torch.equal(compute_logits(folder), expected)


def test_a_bias_alone_is_forgiven_if_it_is_zero() -> None:
    model, asked = random_model(llama_config()), list[str]()

    def is_zero(name: str) -> bool:
        asked.append(name)
        return "q_proj" in name

    refuse_unread(model, [f"{QUERY}.bias", "vision_tower.patch.bias"], "here", is_zero)
    other = "model.layers.0.self_attn.k_proj.bias"
    with pytest.raises(ExportError, match=f"^here has weights .* not use: {other}; correct"):
        refuse_unread(model, [f"{QUERY}.bias", other], "here", is_zero)
    assert asked == [f"{QUERY}.bias", f"{QUERY}.bias", other]
    with pytest.raises(ExportError, match=r"q_proj\.weight_scale"):
        refuse_unread(model, [f"{QUERY}.weight_scale"], "here", is_zero)
