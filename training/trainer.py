"""transformers' Trainer, extended by two learning rates, λ0's schedule and held-out replies."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from medusa_trt.errors import TrainingError
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.files import find_write_reason
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.backbone import select_device, select_dtype
from medusa_trt.training.bars import Bar
from medusa_trt.training.data.datasets import Batch, FeatureRows, PaddedConversations, count_rows
from medusa_trt.training.objectives import HeadsOnBackbone, HeadsOnFeatures
from medusa_trt.training.options import TrainOptions

_STATE_FILE = "trainer_state.json"
_WARMUP_FRACTION = 0.03


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training, which may have been interrupted and continued.

    Attributes:
        heads: the trained heads.
        accuracy: that on held-out replies.
        log: the Trainer's log, with a "step" in each entry.
        num_train_tokens: reply tokens trained on, each counted once.
        num_fit_tokens: reply tokens that the initial linear maps were fitted to.
    """

    heads: MedusaHeads
    accuracy: Accuracy
    log: list[dict[str, float]]
    num_train_tokens: int
    num_fit_tokens: int = 0


class _BarCallback(TrainerCallback):
    """Shows a bar of the updates, and a line for each measurement of the heads."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar = Bar("updates", state.max_steps, "update", initial=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._bar is not None
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if self._bar is None:
            return
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
            self._bar.set_postfix_str(self._loss, refresh=False)
        if (length := logs.get("eval_tokens_per_step")) is not None:
            place = f"after {state.global_step} of {state.max_steps} updates"
            text = f"{place}: {self._loss}, {length:.3f} tokens per step on held-out replies"
            self._bar.write(text, file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._bar is not None
        self._bar.close()
        self._bar = None


class MedusaTrainer(Trainer):
    """Trains a module whose forward returns the loss of a batch at a progress from 0 to 1."""

    def __init__(self, *, measure: Callable[[], Accuracy], **arguments: Any) -> None:
        """Takes the Trainer's arguments, and `measure`, which is called at every evaluation."""
        super().__init__(**arguments)
        self._measure = measure
        self.accuracy: Accuracy | None = None

    def compute_loss(
        self, model: nn.Module, inputs: Batch, *_: object, **__: object
    ) -> torch.Tensor:
        """Computes the module's loss, and counts the reply tokens in the state that is saved."""
        rows = torch.tensor(count_rows(inputs), device=self.args.device)
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
    module: HeadsOnFeatures | HeadsOnBackbone,
    groups: list[dict[str, Any]],
    dataset: FeatureRows | PaddedConversations,
    measure: Callable[[], Accuracy],
    folder: Path,
    options: TrainOptions,
    *,
    batch_size: int,
    num_epochs: float,
) -> TrainResult:
    """Trains to the end, starting from the last complete checkpoint in `folder` if there is one.

    Args:
        module: the module to train; see `MedusaTrainer`.
        groups: parameters with their learning rates, as torch optimizers expect them.
        dataset: the data to train on.
        measure: measures the heads on held-out replies.
        folder: folder of the checkpoints.
        options: options of training.
        batch_size: items of the dataset in a batch; an update takes `options.accumulation` batches.
        num_epochs: passes over the data; `options.max_steps` overrides it.
    """
    steps_per_epoch = -(-len(dataset) // (batch_size * options.accumulation))
    total_steps = options.max_steps or max(1, round(steps_per_epoch * num_epochs))
    every = max(1, total_steps // options.num_checkpoints)
    trainer = MedusaTrainer(
        measure=measure,
        model=module,
        args=_make_arguments(folder, options, batch_size, total_steps, every),
        train_dataset=dataset,
        eval_dataset=dataset,  # required but not read: `measure` reads other data
        data_collator=lambda batch: batch,
        optimizers=(torch.optim.AdamW(groups, weight_decay=options.weight_decay), None),
        callbacks=[_BarCallback()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = find_last_checkpoint(folder)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Exception as error:
        if (reason := find_write_reason(error)) is None:
            raise
        raise TrainingError(f"cannot write {folder}: {reason}; then run it again") from error
    trainer.evaluate()
    assert trainer.accuracy is not None
    # After the first epoch the same rows come again.
    num_seen = min(trainer.state.num_input_tokens_seen, dataset.num_rows)
    log = trainer.state.log_history
    return TrainResult(module.heads.to_heads(), trainer.accuracy, log, num_seen)


def find_last_checkpoint(folder: Path) -> Path | None:
    """Finds the newest complete checkpoint.

    The Trainer writes the state of a checkpoint last. So a checkpoint whose state cannot be read
    is incomplete: the run was killed while it was written.
    """
    checkpoints = [
        (int(path.name.split("-")[-1]), path)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.split("-")[-1].isdigit() and _is_complete(path)
    ]
    return max(checkpoints)[1] if checkpoints else None


def _is_complete(checkpoint: Path) -> bool:
    try:
        return "global_step" in json.loads((checkpoint / _STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False


def _make_arguments(
    folder: Path, options: TrainOptions, batch_size: int, total_steps: int, every: int
) -> TrainingArguments:
    device = select_device()
    bf16 = select_dtype(device) == torch.bfloat16 if options.bf16 is None else options.bf16
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
        disable_tqdm=True,  # The bar is our own.
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=device.type == "cuda",
    )
