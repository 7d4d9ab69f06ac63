"""Writes the results of training: heads, tree, curves, log and a model card."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from medusa_trt import __version__
from medusa_trt.errors import TrainingError, require_extra
from medusa_trt.export.head_conversion.saving import name_tensors
from medusa_trt.export.heads.facts import facts_from_heads
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.data.shards import DataSpec
from medusa_trt.training.options import JointOptions, TrainOptions
from medusa_trt.training.trainer import TrainResult
from medusa_trt.tree_configs import HEADS_TREE_FILE


def save_heads(heads: MedusaHeads, folder: Path, model: str) -> None:
    """Writes heads in this project's format, as float16, and the config that belongs to it."""
    row = FORMATS["medusa-trt"]
    # safetensors' `save_file` would make a file that other users cannot read.
    (folder / row.file).write_bytes(save(name_tensors(heads, row, torch.float16)))
    config = row.config(facts_from_heads(heads, None, model))
    (folder / row.config_file).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_report(
    result: TrainResult,
    folder: Path,
    title: str,
    specs: Sequence[DataSpec],
    options: TrainOptions | JointOptions,
) -> None:
    """Writes the model card, the tree, the curves and the log into an existing folder.

    `specs` describe the training data, one for each data folder; the card lists `options`.
    """
    result.accuracy.tree.save(folder / HEADS_TREE_FILE)
    (folder / "log.json").write_text(json.dumps(result.log, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(_format_card(result, title, specs, options), "utf-8")
    save_curves(result.log, folder / "curves.png", title)


def save_curves(log: list[dict[str, float]], path: Path, title: str) -> None:
    """Draws the loss, the top-1 accuracy of each head and the tokens per step over the updates.

    Raises:
        TrainingError: matplotlib is not installed.
    """
    with require_extra("drawing the curves", "train", error_class=TrainingError):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 3)
    heads = sorted({key for entry in log for key in entry if key.endswith("_top_1")})
    panels = (
        ("loss", ["loss"]),
        ("top-1 accuracy, held out", heads),
        ("tokens per step, held out", ["eval_tokens_per_step"]),
    )
    for axis, (label, keys) in zip(axes, panels, strict=True):
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            axis.plot(*zip(*points, strict=True), marker=".", label=key) if points else None
        axis.set_title(label)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend([f"head {index}" for index in range(1, len(keys) + 1)])
    figure.savefig(path, dpi=120)


def format_accuracy(accuracy: Accuracy) -> str:
    """Formats the top-k accuracies of the heads as a Markdown table, in percent."""
    lines = ["| head | top-1 | top-5 | top-10 |", "|---|---|---|---|"]
    rows = zip(accuracy.top_1, accuracy.top_5, accuracy.top_10, strict=True)
    for head, values in enumerate(rows, start=1):
        lines.append(f"| {head} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)


def _format_card(
    result: TrainResult,
    title: str,
    specs: Sequence[DataSpec],
    options: TrainOptions | JointOptions,
) -> str:
    accuracy = result.accuracy
    fit = ""
    if result.num_fit_tokens:
        fit = f" (the initial linear maps were fitted on {result.num_fit_tokens:,} tokens)"
    data = "\n".join(map(_describe_data, specs))
    settings = "\n".join(f"- {name}: {value}" for name, value in asdict(options).items())
    return f"""# {title}

Trained by medusa-trt {__version__} on {result.num_train_tokens:,} tokens of the model's own
replies{fit}:

{data}

Held-out replies ({accuracy.num_tokens:,} tokens of prompts that were not trained on), percent:

{format_accuracy(accuracy)}

A step of decoding adds {accuracy.tokens_per_step:.3f} tokens on average, the root included. This
was computed from the held-out replies and the tree of {accuracy.tree.num_nodes} nodes in
`{HEADS_TREE_FILE}`. The held-out replies have the temperatures above; greedy replies are easier to
predict.

{settings}
"""


def _describe_data(spec: DataSpec) -> str:
    temperatures = ", ".join(f"{value:g}" for value in spec.temperatures)
    replies = "reply" if spec.num_turns == 1 else "replies"
    return (
        f"- {spec.num_conversations:,} conversations with {spec.num_turns} {replies} of up to "
        f"{spec.max_new_tokens} tokens, at temperatures {temperatures} in turn, seed {spec.seed} "
        f"({spec.dtype})"
    )
