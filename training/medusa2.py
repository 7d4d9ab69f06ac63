"""Medusa-2: trains the backbone and its heads together (paper, section 2.2.2)."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from medusa_trt.export.head_conversion.saving import name_tensors
from medusa_trt.export.heads.facts import facts_from_heads
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.export.models.base_model import BaseModel, save_model
from medusa_trt.training.data.datasets import PaddedConversations
from medusa_trt.training.data.rows import Split
from medusa_trt.training.medusa1 import measure_on_backbone, train_heads
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.options import JointOptions
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.training.trainer import TrainResult, run_trainer


@dataclass(frozen=True, slots=True)
class JointResult:
    """The result of both stages.

    Attributes:
        model: the backbone with its adapter merged, on the CPU.
        first: result of the first stage, None if heads were given.
        second: result of the second stage. Its accuracy is that of the new backbone on the old
            one's replies.
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
        split: the backbone's replies.
        folder: folder of the checkpoints of both stages; an interrupted run continues.
        options: options of training.
        heads: start the second stage with these heads and skip the first one. Their shape and
            draft vocabulary replace those of the options.

    Raises:
        HeadsError: the given heads do not fit the backbone.
    """
    first = None
    if heads is None:
        first = train_heads(base, split, folder / "stage-1", options.heads)
        heads = first.heads
    torch.manual_seed(options.heads.seed)
    trainable = TrainableHeads.from_heads(heads, base.model)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_modules="all-linear",
    )
    adapted = get_peft_model(base.model, lora)
    assert isinstance(adapted, PeftModel)
    module = HeadsOnBackbone(
        adapted,
        trainable,
        options.heads,
        teacher=adapted.disable_adapter,
        heads_weight=lambda progress: ramp_weight(options.heads_weight, progress),
    )
    second = run_trainer(
        module,
        group_parameters(module, options),
        PaddedConversations(split.train, options.heads.max_length),
        partial(measure_on_backbone, module, split, options.heads),
        folder / "stage-2",
        options.heads,
        batch_size=options.heads.batch_size,
        num_epochs=options.num_epochs,
    )
    merged: PreTrainedModel = adapted.merge_and_unload()  # type: ignore[assignment]
    merged.cpu()
    return JointResult(merged, first, second)


def ramp_weight(weight: float, progress: float) -> float:
    """Raises λ0 along a quarter of a sine, as the paper's code does; `progress` is 0 to 1."""
    return weight * math.sin(math.pi / 2 * min(1.0, progress))


def group_parameters(module: HeadsOnBackbone, options: JointOptions) -> list[dict[str, object]]:
    """Groups the parameters: the adapter, and the heads at a multiple of its learning rate."""
    adapter = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    rate = options.learning_rate
    return [
        {"params": adapter, "lr": rate},
        {"params": list(module.heads.parameters()), "lr": rate * options.heads_factor},
    ]


def save_combined(
    base: BaseModel, model: PreTrainedModel, heads: MedusaHeads, folder: Path
) -> None:
    """Writes backbone, heads and tokenizer as one Hugging Face folder, as FasterDecoding v1.0 does.

    `base` is the original model, which has the tokenizer, `model` the merged backbone.
    """
    row = FORMATS["fasterdecoding-merged"]
    config = row.config(facts_from_heads(heads, None, None))
    save_model(model, folder, name_tensors(heads, row, model.dtype), **config)
    base.tokenizer.save_pretrained(folder)
