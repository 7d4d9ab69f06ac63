"""transformers' Trainer with what Medusa adds: two learning rates, λ0's ramp, held-out replies."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from medusa_trt.errors import TrainingError
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.backbone import best_device, best_dtype
from medusa_trt.training.datasets import Batch, FeatureRows, PaddedConversations, num_rows
from medusa_trt.training.options import TrainOptions

_STATE_FILE = "trainer_state.json"
_WARMUP_FRACTION = 0.03


@dataclass(frozen=True, slots=True)
class TrainRun:
    """What a run came to, with what it did before it was ended and continued.

    Attributes:
        accuracy: at the end.
        log: one entry with "step" for each thing measured.
        num_rows: different reply tokens that its updates were computed from.
    """

    accuracy: Accuracy
    log: list[dict[str, float]]
    num_rows: int


class MedusaTrainer(Trainer):
    """Trains a module whose forward takes a batch and `progress` (0 to 1) and returns the loss."""

    def __init__(self, *, measure: Callable[[], Accuracy], **arguments: Any) -> None:
        """`measure` is called at every evaluation; the rest is the Trainer's."""
        super().__init__(**arguments)
        self._measure = measure
        self.accuracy: Accuracy | None = None

    def compute_loss(
        self, model: nn.Module, inputs: Batch, *_: object, **__: object
    ) -> torch.Tensor:
        """The module's own loss. The rows are counted where a checkpoint keeps the count."""
        rows = torch.tensor(num_rows(inputs), device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(rows).sum())
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss: torch.Tensor = model(**inputs, progress=progress)
        return loss

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Measures the heads on held-out replies instead of computing a loss."""
        assert self.model is not None
        self.model.eval()
        self.accuracy = self._measure()
        metrics = {f"eval_{name}": value for name, value in self.accuracy.to_metrics().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def run_trainer(
    module: nn.Module,
    groups: list[dict[str, Any]],
    dataset: FeatureRows | PaddedConversations,
    measure: Callable[[], Accuracy],
    folder: Path,
    options: TrainOptions,
    *,
    batch_size: int,
    num_epochs: float,
) -> TrainRun:
    """Trains until the end, from the last whole checkpoint in `folder` if there is one.

    Args:
        module: see `MedusaTrainer`.
        groups: parameters with their learning rates, as torch optimizers take them.
        dataset: what to train on.
        measure: measures the heads.
        folder: for checkpoints.
        options: of training.
        batch_size: items of the dataset in a step's piece.
        num_epochs: passes over the data, unless `options.max_steps`.
    """
    steps_per_epoch = -(-len(dataset) // (batch_size * options.accumulation))
    total_steps = options.max_steps or max(1, round(steps_per_epoch * num_epochs))
    every = max(1, total_steps // options.num_checkpoints)
    trainer = MedusaTrainer(
        measure=measure,
        model=module,
        args=_arguments(folder, options, batch_size, total_steps, every),
        train_dataset=dataset,
        eval_dataset=dataset,  # never read: `measure` has its own
        data_collator=_as_it_is,
        optimizers=(_optimizer(groups, options), None),
    )
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.evaluate()
    assert trainer.accuracy is not None
    num_seen = min(trainer.state.num_input_tokens_seen, dataset.num_rows)  # then they come again
    return TrainRun(trainer.accuracy, trainer.state.log_history, num_seen)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end.

    The Trainer writes a checkpoint's state last, so one whose state cannot be read was being
    written when the run was killed.
    """
    found = [
        (int(path.name.split("-")[-1]), path)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.split("-")[-1].isdigit() and _is_whole(path)
    ]
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return "global_step" in json.loads((checkpoint / _STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _optimizer(groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    for group in groups:
        if not group["params"]:
            raise TrainingError("there is nothing to train: no parameter has a gradient")
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)


def _arguments(
    folder: Path, options: TrainOptions, batch_size: int, total_steps: int, every: int
) -> TrainingArguments:
    device = best_device()
    bf16 = best_dtype(device) == torch.bfloat16 if options.bf16 is None else options.bf16
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=options.accumulation,
        max_steps=total_steps,
        lr_scheduler_type="cosine",
        warmup_steps=round(_WARMUP_FRACTION * total_steps),
        bf16=bf16,
        use_cpu=device.type == "cpu",
        seed=options.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, min(50, every // 4)),
        logging_first_step=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=device.type == "cuda",
    )
