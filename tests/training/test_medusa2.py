"""Medusa-2: the adapter, its teacher, and the model that both stages make."""

import json
from pathlib import Path

import pytest
import torch
from support.ruled_data import make_ruled_split, quick_options
from support.tiny_models import VOCAB_SIZE
from transformers import AutoModelForCausalLM

from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.data.targets import DraftVocabulary
from medusa_trt.training.medusa2 import (
    group_parameters,
    ramp_weight,
    save_combined,
    train_joint,
)
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.options import HeadsShape, JointOptions
from medusa_trt.training.trainable_heads import TrainableHeads


def test_joint_training_saves_a_model_that_is_its_own_teachers_neighbour(
    base: BaseModel, tmp_path: Path
) -> None:
    """Both stages; the merged folder loads as a model and as heads, and says what was trained."""
    split = make_ruled_split(base, 0.0, has_features=False, count=20)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    heads_options = quick_options(HeadsShape(num_heads=2), max_steps=6, batch_size=4)
    options = JointOptions(heads=heads_options, learning_rate=1e-3, lora_rank=4)
    result = train_joint(base, split, tmp_path / "checkpoints", options)
    assert result.first is not None
    assert not torch.equal(
        result.first.heads.heads[0].blocks[0].weight, result.second.heads.heads[0].blocks[0].weight
    )
    saved = tmp_path / "checkpoints" / "stage-2" / "checkpoint-6" / "model.safetensors"
    assert saved.stat().st_size < 500_000  # the adapter and the heads, without the backbone
    save_combined(base, result.model, result.second.heads, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    merged = result.model.state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in loaded.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in merged.items())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (2, 1)
    heads = load_heads(tmp_path / "merged").heads
    assert torch.equal(
        heads.heads[1].blocks[0].weight, result.second.heads.heads[1].blocks[0].weight
    )


def adapted_module(base: BaseModel) -> HeadsOnBackbone:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(base.model, LoraConfig(r=4, target_modules="all-linear"))
    shape = HeadsShape(num_heads=2)
    embedding, unembedding = get_embeddings(base.model)
    vocabulary = DraftVocabulary(None, VOCAB_SIZE)
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding)
    return HeadsOnBackbone(
        adapted,
        heads,
        quick_options(shape, soft_weight=0.8),
        teacher=adapted.disable_adapter,
        heads_weight=lambda progress: ramp_weight(0.2, progress),
    )


def test_the_teacher_is_the_model_without_its_adapter(base: BaseModel) -> None:
    """A new adapter changes nothing, so the divergence is 0; once it does, it is not."""
    module = adapted_module(base)
    ids = torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {
        "token_ids": ids,
        "turns": torch.tensor([[0] * 4 + [1] * 8] * 2),
        "attention_mask": torch.ones_like(ids),
    }
    assert module(**batch, progress=0.0).item() == pytest.approx(0, abs=1e-5)
    with_heads = module(**batch, progress=1.0).item()
    assert module(**batch, progress=0.5).item() == pytest.approx(with_heads / 2**0.5, rel=1e-3)
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loss = module(**batch, progress=0.0)
    assert loss.item() > 1e-3
    loss.backward()
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient and all("lora_" in name or "heads." in name for name in with_gradient)


def test_the_heads_learn_four_times_as_fast_as_the_adapter(base: BaseModel) -> None:
    module = adapted_module(base)
    adapter, heads = group_parameters(module, JointOptions(learning_rate=1e-4))
    assert heads["lr"] == pytest.approx(4 * 1e-4) and adapter["lr"] == 1e-4
    counted = [sum(p.numel() for p in group["params"]) for group in (adapter, heads)]  # type: ignore[attr-defined]
    assert sum(counted) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert [ramp_weight(0.2, p) for p in (0, 1, 2)] == pytest.approx([0, 0.2, 0.2])
