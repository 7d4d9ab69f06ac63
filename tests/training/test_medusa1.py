"""Medusa-1: what heads learn on a backbone that does not change."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ruled_data import NOISE, A, B, V, make_ruled_split, quick_options
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.backbone import describe_precision, load_backbone
from medusa_trt.training.data.distillation import generate_data
from medusa_trt.training.medusa1 import load_split, train_heads
from medusa_trt.training.options import DataOptions, HeadsShape, Quantization
from medusa_trt.training.trainer import find_last_checkpoint


def best_accuracy(steps: int, noise: float) -> float:
    """What the rule allows for the token `steps` after a known one: its likeliest value."""
    shares: dict[int, float] = {}
    for extras in itertools.product((0, 1), repeat=steps):
        token, share = 0, 1.0
        for extra in extras:
            token, share = (A * token + B + extra) % V, share * (noise if extra else 1 - noise)
        shares[token] = shares.get(token, 0.0) + share
    return max(shares.values())


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("has_root_map", [False, True])
def test_each_head_reaches_the_accuracy_that_a_rule_allows(
    num_layers: int, noise: float, has_root_map: bool, base: BaseModel, tmp_path: Path
) -> None:
    """Head i sees a token and shall predict the one i + 2 further on.

    With a root map it sees the next token too, and a noisy rule allows more.
    """
    split = make_ruled_split(base, noise, has_features=True)
    shape = HeadsShape(
        num_layers=num_layers, has_root_map=has_root_map, has_projection=not has_root_map
    )
    options = quick_options(shape)
    result = train_heads(base, split, tmp_path, options)
    for head, accuracy in enumerate(result.accuracy.top_1):
        allowed = best_accuracy(head + (1 if has_root_map else 2), noise)
        assert allowed - 0.08 < accuracy < allowed + 0.08, (head, allowed)
    if not noise:
        assert result.accuracy.top_1 == (1.0, 1.0, 1.0)
        assert result.accuracy.tokens_per_step > 3.5


def test_training_goes_on_from_given_heads(base: BaseModel, tmp_path: Path) -> None:
    split = make_ruled_split(base, 0.0, has_features=True)
    first = train_heads(base, split, tmp_path / "first", quick_options(HeadsShape(num_layers=2)))
    options = quick_options(HeadsShape(), learning_rate=1e-6, max_steps=1)
    second = train_heads(base, split, tmp_path / "second", options, first.heads)
    assert second.heads.num_layers == 2
    assert second.accuracy.top_1 == first.accuracy.top_1 == (1.0, 1.0, 1.0)


def test_heads_learn_the_rule_on_a_running_backbone_that_stays_as_it_is(
    base: BaseModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    split = make_ruled_split(base, 0.0, has_features=False)
    shape = HeadsShape(num_heads=2)
    options = quick_options(shape, learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2)
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_data_of_another_model_and_folders_that_do_not_match_are_refused(
    base: BaseModel, tmp_path: Path
) -> None:
    list(generate_data(base, [("Hi",), ("Yes",)], tmp_path, DataOptions(max_new_tokens=3)))
    load_split(base, [tmp_path], 0.5)
    other = replace(base, source=replace(base.source, name="other"))
    with pytest.raises(TrainingError, match=r"was made by tiny-llama .* not by other"):
        load_split(other, [tmp_path], 0.5)
    more, without = tmp_path / "more", tmp_path / "without"
    options = DataOptions(max_new_tokens=3, seed=1)
    list(generate_data(base, [("No",), ("So",)], more, options))
    split = load_split(base, [tmp_path, more], 0.5)
    assert len(split.train) + len(split.held_out) == 4
    list(generate_data(base, [("No",)], without, replace(options, keep_features=False)))
    with pytest.raises(TrainingError, match=r"only one of .* holds hidden states"):
        load_split(base, [tmp_path, without], 0.5)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_heads_learn_on_a_quantized_backbone_that_stays_as_it_is(
    quantization: Quantization, tmp_path: Path
) -> None:
    """Also when its state is read; the tables of the tokens keep the model's own type."""
    pytest.importorskip("bitsandbytes")
    model = save_tiny_model(tmp_path / "model", llama_config())
    base = load_backbone(str(model), torch.float32, quantization)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = base.model(ids).logits
        base.model.state_dict()
        assert torch.equal(base.model(ids).logits, logits)
    packed = {"8bit": torch.int8, "4bit": torch.uint8}[quantization]
    assert base.model.model.layers[1].mlp.up_proj.weight.dtype == packed
    assert {weight.dtype for weight in get_embeddings(base.model)} == {torch.float32}
    assert describe_precision(base.model) == f"{quantization} float32"
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    split = make_ruled_split(base, 0.0, has_features=False)
    options = quick_options(
        HeadsShape(num_heads=2), learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2
    )
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = dict(base.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    last = find_last_checkpoint(tmp_path)
    assert last is not None and (last / "model.safetensors").stat().st_size < 300_000
    shutil.rmtree(last)
    assert train_heads(base, split, tmp_path, options).accuracy == result.accuracy
