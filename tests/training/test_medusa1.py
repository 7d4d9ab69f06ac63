"""Medusa-1: what heads learn, what they leave alone, and that a kill loses nothing."""

import importlib.util
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ruled_data import NOISE, A, B, V, quick, ruled_split
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.errors import TrainingError
from medusa_trt.export.heads.head_checkpoint import heads_from_tensors
from medusa_trt.export.heads.medusa_heads import HeadsModule, embedding_of
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.backbone import load_backbone, precision_of, unembedding_of
from medusa_trt.training.data.distillation import generate_data
from medusa_trt.training.data.rows import DraftVocabulary
from medusa_trt.training.medusa1 import load_split, train_heads
from medusa_trt.training.options import DataOptions, HeadsShape, Quantization
from medusa_trt.training.trainable_heads import TrainableHeads, shape_of, tensors_from_heads
from medusa_trt.training.trainer import last_checkpoint


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
    split = ruled_split(base, noise, has_features=True)
    shape = HeadsShape(
        num_layers=num_layers, has_root_map=has_root_map, has_projection=not has_root_map
    )
    options = quick(shape)
    result = train_heads(base, split, tmp_path, options)
    for head, accuracy in enumerate(result.accuracy.top_1):
        allowed = best_accuracy(head + (1 if has_root_map else 2), noise)
        assert allowed - 0.08 < accuracy < allowed + 0.08, (head, allowed)
    if not noise:
        assert result.accuracy.top_1 == (1.0, 1.0, 1.0)
        assert result.accuracy.tokens_per_step > 3.5


def test_heads_learn_the_rule_on_a_running_backbone_that_stays_as_it_is(
    base: BaseModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    split = ruled_split(base, 0.0, has_features=False)
    shape = HeadsShape(num_heads=2)
    options = quick(shape, learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2)
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("has_own_unembedding", [False, True])
def test_heads_and_layers_are_not_tied(has_own_unembedding: bool) -> None:
    shape = HeadsShape(
        num_heads=3, num_layers=2, has_projection=True, has_own_unembedding=has_own_unembedding
    )
    unembedding = torch.randn(V, 8)
    heads = TrainableHeads(shape, DraftVocabulary(None, V), unembedding, torch.randn(V, 8))
    parameters = dict(heads.named_parameters())
    assert len({value.data_ptr() for value in parameters.values()}) == len(parameters)
    assert len(parameters) == 3 * (2 * 2 + 2 + 2 + has_own_unembedding)
    for name, value in parameters.items():
        before = {other: tensor.detach().clone() for other, tensor in parameters.items()}
        with torch.no_grad():
            value.add_(1)
        changed = {o for o, tensor in parameters.items() if not torch.equal(tensor, before[o])}
        assert changed == {name}


@pytest.mark.parametrize("has_root_map", [True, False])
@pytest.mark.parametrize("has_projection", [True, False])
def test_the_checkpoint_gives_the_logits_that_were_trained(
    has_root_map: bool, has_projection: bool
) -> None:
    shape = HeadsShape(
        num_heads=2,
        num_layers=2,
        has_root_map=has_root_map,
        has_projection=has_projection,
        has_own_unembedding=True,
    )
    vocabulary = DraftVocabulary(torch.tensor([1, 4, 30]), V)
    unembedding, embedding, hidden = torch.randn(V, 8), torch.randn(V, 8), torch.randn(5, 8)
    roots = torch.randint(V, (5,))
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    read = heads_from_tensors(tensors_from_heads(heads.to_heads(), torch.float32), "test")
    exported = HeadsModule(read, unembedding, top_k=2, embedding=embedding)
    expected = heads.logits(hidden, roots)
    assert torch.allclose(exported.logits(hidden, roots), expected, atol=1e-5)
    other = heads.logits(hidden, (roots + 1) % V)
    assert torch.equal(other, expected) != has_root_map
    assert shape_of(read) == shape
    again = TrainableHeads(shape, vocabulary, unembedding, embedding)
    again.load_heads(read)
    assert torch.equal(again.logits(hidden, roots), expected)


@pytest.mark.parametrize("has_features", [True, False])
def test_a_killed_run_continues_to_the_same_weights(
    has_features: bool, base: BaseModel, tmp_path: Path
) -> None:
    """The last checkpoints are taken away, and one is left as a kill in the middle leaves it."""
    split = ruled_split(base, NOISE, has_features=has_features, count=30)
    options = quick(HeadsShape(), max_steps=12, num_checkpoints=4, num_sampled=4, batch_size=4)
    whole = train_heads(base, split, tmp_path / "whole", options)
    ended = tmp_path / "ended"
    train_heads(base, split, ended, options)
    shutil.rmtree(ended / "checkpoint-12")
    (ended / "checkpoint-10").mkdir()
    (ended / "checkpoint-10" / "trainer_state.json").write_text('{"global_')
    assert last_checkpoint(ended) == ended / "checkpoint-9"
    torch.manual_seed(1234)
    continued = train_heads(base, split, ended, options)
    assert [e["step"] for e in continued.log] == [e["step"] for e in whole.log]
    expected = tensors_from_heads(whole.heads, torch.float32)
    found = tensors_from_heads(continued.heads, torch.float32)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert continued.accuracy == whole.accuracy
    assert continued.num_train_tokens == whole.num_train_tokens


def test_the_tokens_of_the_updates_are_counted_and_not_those_of_the_data(
    base: BaseModel, tmp_path: Path
) -> None:
    """20 replies of 46 tokens, of which 45 have one to predict; a second pass brings no new ones.

    A conversation cut to 14 tokens has 10 tokens of its reply.
    """
    counts = {}
    for name, has_features, changes in (
        ("rows", True, {"max_steps": 3, "batch_rows": 16}),
        ("all rows", True, {"num_epochs": 2, "batch_rows": 300}),
        ("conversations", False, {"max_steps": 2, "batch_size": 3, "accumulation": 2}),
        ("cut conversations", False, {"num_epochs": 2, "max_length": 14}),
    ):
        split = ruled_split(base, 0.0, has_features=has_features, count=30)
        options = quick(HeadsShape(num_heads=1, has_root_map=False), **changes)
        counts[name] = train_heads(base, split, tmp_path / name, options).num_train_tokens
    assert counts == {
        "rows": 3 * 16,
        "all rows": 20 * 45,
        "conversations": 2 * 2 * 3 * 45,
        "cut conversations": 20 * 9,
    }


def test_data_of_another_model_and_quantization_without_its_library_are_refused(
    tiny_model: Path, base: BaseModel, tmp_path: Path
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
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(TrainingError, match=r"pip install 'medusa-trt\[train-quantized\]'"):
            load_backbone(str(tiny_model), quantization="4bit")


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
    assert unembedding_of(base.model).dtype == embedding_of(base.model).dtype == torch.float32
    assert precision_of(base.model) == f"{quantization} float32"
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    split = ruled_split(base, 0.0, has_features=False)
    options = quick(
        HeadsShape(num_heads=2), learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2
    )
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = dict(base.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    last = last_checkpoint(tmp_path)
    assert last is not None and (last / "model.safetensors").stat().st_size < 300_000
    shutil.rmtree(last)
    assert train_heads(base, split, tmp_path, options).accuracy == result.accuracy
