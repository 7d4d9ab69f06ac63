"""The command line's training: `medusa-trt train data|heads|joint|measure MODEL`."""

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_trt.cli.train_arguments import (
    add_data_arguments,
    add_joint_arguments,
    add_measure_arguments,
    add_training_arguments,
)
from medusa_trt.errors import MedusaError
from medusa_trt.training.options import DataOptions, HeadsShape, JointOptions, TrainOptions

if TYPE_CHECKING:
    from medusa_trt.training.accuracy import Accuracy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, help_, add in (
        ("data", "let the model reply to prompts, to train on", add_data_arguments),
        ("heads", "train heads on a frozen backbone (Medusa-1)", add_training_arguments),
        ("joint", "train heads and backbone together (Medusa-2)", add_joint_arguments),
        ("measure", "measure heads on replies to other prompts", add_measure_arguments),
    ):
        add(steps.add_parser(name, help=help_))


def run(arguments: argparse.Namespace) -> None:
    """Does one step of training.

    Raises:
        MedusaError: whatever the user can cause; as far as possible before anything is computed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401

        if arguments.step == "joint":
            import peft  # noqa: F401
    except ImportError as error:
        raise MedusaError(
            f"training needs {error.name}: pip install 'medusa-trt[train]'"
        ) from error
    # bitsandbytes warns of every product in 8 bits that it is one.
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    steps = {"data": _data, "heads": _heads, "joint": _joint, "measure": _measure}
    steps[arguments.step](arguments)


def _values(
    options: type[DataOptions | HeadsShape | TrainOptions | JointOptions],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What the arguments say of a dataclass of options."""
    names = (field.name for field in fields(options))
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _data(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from medusa_trt.runtime.bundle import Bundle
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.data.distillation import generate_data, seed_prompts

    options = DataOptions(**_values(DataOptions, arguments))
    prompts = seed_prompts(arguments.prompts)
    bundle = None if arguments.bundle is None else Bundle.open(arguments.bundle)
    base = load_backbone(arguments.model, quantization=arguments.quantization)
    total = options.num_conversations or len(prompts)
    num_tokens = 0
    with tqdm(total=-(-total // options.batch_size), unit="shard", smoothing=0.1) as bar:
        for shard in generate_data(base, prompts, arguments.output, options, bundle):
            if shard is None:
                bar.initial += 1  # it was there: it says nothing about the speed
            else:
                num_tokens += int((shard.turns > 0).sum())
            bar.update()
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{num_tokens} tokens, {num_tokens / max(seconds, 1e-9):.0f}/s")
    print(f"wrote {arguments.output}: {num_tokens} new reply tokens", file=sys.stderr)


def _train_options(arguments: argparse.Namespace) -> TrainOptions:
    shape = HeadsShape(**_values(HeadsShape, arguments))
    values = _values(TrainOptions, arguments)
    values["draft_vocab_size"] = values["draft_vocab_size"] or None
    return TrainOptions(shape=shape, **values)


def _joint_options(arguments: argparse.Namespace) -> JointOptions:
    values = _values(JointOptions, arguments) | {
        "heads": _train_options(arguments),
        "learning_rate": arguments.joint_learning_rate,
        "num_epochs": arguments.joint_epochs,
    }
    return JointOptions(**values)


def _heads(arguments: argparse.Namespace) -> None:
    options = _train_options(arguments)
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.data.shards import read_spec
    from medusa_trt.training.medusa1 import load_split, train_heads
    from medusa_trt.training.report import replaced_folder, save_heads, save_report
    from medusa_trt.training.run_record import check_same_run

    specs = [read_spec(folder) for folder in arguments.data]
    check_same_run(arguments.output, specs, options)
    base = load_backbone(arguments.model, quantization=options.quantization)
    split = load_split(base, arguments.data, options.held_out_fraction)
    result = train_heads(base, split, arguments.output / "checkpoints", options)
    with replaced_folder(arguments.output) as folder:
        save_heads(result.heads, folder, base.source.name)
        save_report(result, folder, f"Medusa heads for {base.source.name}", specs, options)
    _conclude(result.accuracy, arguments.output)


def _joint(arguments: argparse.Namespace) -> None:
    import torch

    options = _joint_options(arguments)
    from medusa_trt.export.heads.head_checkpoint import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.data.shards import read_spec
    from medusa_trt.training.medusa1 import load_split
    from medusa_trt.training.medusa2 import save_combined, train_joint
    from medusa_trt.training.report import replaced_folder, save_report
    from medusa_trt.training.run_record import check_same_run

    specs = [read_spec(folder) for folder in arguments.data]
    heads = None if arguments.heads is None else heads_from_path(arguments.heads)
    check_same_run(arguments.output, specs, options)
    base = load_backbone(arguments.model, dtype=torch.float32)
    split = load_split(base, arguments.data, options.heads.held_out_fraction)
    result = train_joint(base, split, arguments.output / "checkpoints", options, heads)
    with replaced_folder(arguments.output) as folder:
        save_combined(base, result.model, result.second.heads, folder)
        title = f"{base.source.name} with Medusa heads, trained together"
        save_report(result.second, folder, title, specs, options)
    _conclude(result.second.accuracy, arguments.output)


def _measure(arguments: argparse.Namespace) -> None:
    import torch

    from medusa_trt.export.heads.head_checkpoint import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.measure import first_turns, greedy_replies, measure_heads
    from medusa_trt.tree_configs import load_tree

    if arguments.num_nodes < 2 or arguments.max_new_tokens < 2:
        raise MedusaError("--num-nodes and --max-new-tokens must be at least 2")
    tree = load_tree(arguments.tree) if arguments.tree else None
    turns = first_turns(arguments.prompts)
    all_heads = [heads_from_path(path) for path in arguments.heads]
    base = load_backbone(arguments.model, torch.float32, arguments.quantization)
    replies = greedy_replies(base, turns, arguments.max_new_tokens)
    for path, heads in zip(arguments.heads, all_heads, strict=True):
        print(path)
        _print_accuracy(measure_heads(base, replies, heads, arguments.num_nodes, tree))


def _conclude(accuracy: "Accuracy", output: Path) -> None:
    _print_accuracy(accuracy)
    print(f"wrote {output}", file=sys.stderr)


def _print_accuracy(accuracy: "Accuracy") -> None:
    from medusa_trt.training.report import accuracy_table

    print(accuracy_table(accuracy))
    print(
        f"{accuracy.tokens_per_step:.3f} tokens a step with {accuracy.tree.num_nodes} nodes, "
        f"on {accuracy.num_tokens} tokens"
    )
