"""Medusa-2: backbone and heads trained together (paper, section 2.2.2)."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_trt.export.heads.medusa_heads import MedusaHeads, embedding_of
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.training.backbone import unembedding_of
from medusa_trt.training.data.rows import DraftVocabulary, Split
from medusa_trt.training.datasets import PaddedConversations
from medusa_trt.training.medusa1 import (
    TrainResult,
    measure_on_backbone,
    train_heads,
)
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.options import JointOptions
from medusa_trt.training.trainable_heads import TrainableHeads, shape_of, tensors_from_heads
from medusa_trt.training.trainer import run_trainer

_PREFIX = "medusa_head."


@dataclass(frozen=True, slots=True)
class JointResult:
    """What both stages made.

    Attributes:
        model: the backbone with its adapter merged, on the CPU.
        first: the first stage, None where heads were given.
        second: the second stage; its accuracy is with the new backbone on the old one's replies.
    """

    model: PreTrainedModel
    first: TrainResult | None
    second: TrainResult


def train_joint(
    base: BaseModel,
    split: Split,
    folder: Path,
    options: JointOptions,
    heads: MedusaHeads | None = None,
) -> JointResult:
    """Trains heads first, then heads and backbone together.

    Args:
        base: the backbone in float32; it is changed.
        split: of its own replies.
        folder: for the checkpoints of both stages; a run that was ended continues.
        options: how.
        heads: begin the second stage with these, without a first one.

    Raises:
        HeadsError: the given heads do not fit the backbone.
    """
    first = None
    if heads is None:
        first = train_heads(base, split, folder / "stage-1", options.heads)
        heads = first.heads
    torch.manual_seed(options.heads.seed)
    trainable = _heads_to_continue(base, heads)
    adapted = get_peft_model(base.model, _lora_config(options))
    assert isinstance(adapted, PeftModel)
    module = HeadsOnBackbone(
        adapted,
        trainable,
        options.heads,
        teacher=adapted.disable_adapter,
        heads_weight=lambda progress: ramped(options.heads_weight, progress),
    )
    run = run_trainer(
        module,
        learning_rates(module, options),
        PaddedConversations(split.train, options.heads.max_length),
        measure_on_backbone(module, split, options.heads),
        folder / "stage-2",
        options.heads,
        batch_size=options.heads.batch_size,
        num_epochs=options.num_epochs,
    )
    second = TrainResult(trainable.to_heads(), run.accuracy, run.log, run.num_rows)
    return JointResult(_merged(adapted), first, second)


def ramped(weight: float, progress: float) -> float:
    """λ0 along a quarter of a sine, the schedule of the paper's code; `progress` from 0 to 1."""
    return weight * math.sin(math.pi / 2 * min(1.0, progress))


def learning_rates(module: HeadsOnBackbone, options: JointOptions) -> list[dict[str, object]]:
    """The parameters in two groups: the adapter, and the heads at a multiple of its rate."""
    adapter = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    rate = options.learning_rate
    return [
        {"params": adapter, "lr": rate},
        {"params": list(module.heads.parameters()), "lr": rate * options.heads_factor},
    ]


def merged_tensors(model: PreTrainedModel, heads: MedusaHeads) -> dict[str, torch.Tensor]:
    """A combined checkpoint in the layout of FasterDecoding v1.0: `medusa_head.` beside `model.`"""
    named = tensors_from_heads(heads, model.dtype)
    return {**model.state_dict(), **{f"{_PREFIX}{key}": value for key, value in named.items()}}


def save_combined(
    base: BaseModel, model: PreTrainedModel, heads: MedusaHeads, folder: Path
) -> None:
    """Writes the backbone with its heads as one Hugging Face folder, which holds the tokenizer too.

    Args:
        base: where the tokenizer comes from.
        model: the merged backbone.
        heads: its heads.
        folder: an empty or new one.
    """
    # A model that was loaded from GGUF refuses to be saved, a fresh one of its config does not.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.medusa_num_heads, config.medusa_num_layers = heads.num_heads, heads.num_layers
    fresh = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    fresh.save_pretrained(folder, state_dict=merged_tensors(fresh, heads))
    base.tokenizer.save_pretrained(folder)


def _heads_to_continue(base: BaseModel, heads: MedusaHeads) -> TrainableHeads:
    """The heads with gradients; their own shape and draft vocabulary win over the options'."""
    weight = unembedding_of(base.model)
    heads.check_fits(weight.shape[1], weight.shape[0])
    vocabulary = DraftVocabulary(heads.token_map, len(weight))
    trainable = TrainableHeads(shape_of(heads), vocabulary, weight, embedding_of(base.model))
    trainable.load_heads(heads)
    return trainable.to(base.model.device)


def _lora_config(options: JointOptions) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_modules="all-linear",
    )


def _merged(adapted: PeftModel) -> PreTrainedModel:
    model: PreTrainedModel = adapted.merge_and_unload()
    return model.cpu()
