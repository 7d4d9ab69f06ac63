"""The command line's training: `medusa-trt train data|heads|joint|measure MODEL`."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_trt.errors import MedusaError

if TYPE_CHECKING:
    from medusa_trt.training.accuracy import Accuracy
    from medusa_trt.training.options import JointOptions, TrainOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    _add_data(steps.add_parser("data", help="let the model reply to prompts, to train on"))
    _add_training(steps.add_parser("heads", help="train heads on a frozen backbone (Medusa-1)"))
    _add_joint(steps.add_parser("joint", help="train heads and backbone together (Medusa-2)"))
    _add_measure(steps.add_parser("measure", help="measure heads on replies to other prompts"))


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


def _add_data(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='JSON lines with "prompt" or "turns", or text with a prompt on each line '
        "(default: prompts that ship with the package)",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="let this bundle's engine reply: the model as it will be run, and faster on a CPU",
    )
    parser.add_argument(
        "--num-conversations",
        type=int,
        metavar="N",
        help="beyond the prompts, the model writes its own (default: one for each prompt)",
    )
    parser.add_argument(
        "--temperatures",
        type=_numbers,
        metavar="LIST",
        help="of the batches in turn, 0 is greedy (default: 0,0.7)",
    )
    for flag, help_ in (
        ("--num-turns", "replies of a conversation; the model writes the user's turns too"),
        ("--batch-size", "conversations generated together"),
        ("--max-new-tokens", "limit on each reply"),
    ):
        parser.add_argument(flag, type=int, metavar="N", help=help_)
    parser.add_argument(
        "--no-features",
        dest="keep_features",
        action="store_false",
        default=None,
        help="do not keep hidden states: smaller data, and training runs the backbone",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="of train data; several are taken together",
    )
    group = parser.add_argument_group("heads")
    group.add_argument("--num-heads", type=int, metavar="N", help="tokens drafted ahead")
    group.add_argument("--num-layers", type=int, metavar="N", help="residual blocks of a head")
    for name, help_ in (
        ("root-map", "a linear map of the hidden state and the root token, before the blocks"),
        ("projection", "a linear map after the blocks"),
        ("own-unembedding", "an unembedding for each head instead of the backbone's"),
    ):
        group.add_argument(
            f"--{name}",
            dest=f"has_{name.replace('-', '_')}",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=help_,
        )
    group.add_argument(
        "--draft-vocab-size", type=int, metavar="N", help="tokens to draft from; 0 for all"
    )
    group = parser.add_argument_group("training")
    for flag, help_ in (
        ("--batch-rows", "reply tokens in a step, where the data has hidden states"),
        ("--batch-size", "conversations in a step, where the backbone runs"),
        ("--accumulation", "steps of an update"),
        ("--max-steps", "end after so many updates"),
        ("--num-sampled", "tokens of a sampled softmax besides the targets"),
        ("--num-checkpoints", "checkpoints and measurements of a run"),
        ("--num-nodes", "nodes of the tree to measure with"),
        ("--max-length", "cut conversations to so many tokens, where the backbone runs"),
    ):
        group.add_argument(flag, type=int, metavar="N", help=help_)
    for flag, help_ in (
        ("--num-epochs", "passes over the data"),
        ("--learning-rate", "of the heads"),
        ("--weight-decay", "of AdamW"),
        ("--soft-weight", "share of the teacher's best tokens in a target"),
        ("--decay", "λ: head k counts λ^k in the loss"),
        ("--ridge", "penalty of the first guess of the root map or projection"),
        ("--held-out-fraction", "share of the prompts to measure on"),
    ):
        group.add_argument(flag, type=float, metavar="X", help=help_)
    group.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=None, help="mixed precision"
    )


def _add_joint(parser: argparse.ArgumentParser) -> None:
    _add_training(parser)
    group = parser.add_argument_group("second stage")
    group.add_argument(
        "--heads", type=Path, metavar="PATH", help="trained heads, instead of a first stage"
    )
    group.add_argument("--lora-rank", type=int, metavar="N", help="of the backbone's adapter")
    group.add_argument(
        "--lora-alpha", type=int, metavar="N", help="the adapter counts alpha / rank times"
    )
    for flag, help_ in (
        ("--joint-learning-rate", "of the backbone's adapter"),
        ("--joint-epochs", "passes over the data"),
        ("--heads-factor", "the heads' learning rate over the adapter's"),
        ("--heads-weight", "weight of the heads' loss at the end"),
    ):
        group.add_argument(flag, type=float, metavar="X", help=help_)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="alias, folder, .gguf file or hub id")
    parser.add_argument("heads", type=Path, nargs="+", metavar="HEADS", help="head checkpoints")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="first turns (default: MT-bench's 80)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N")
    parser.add_argument("--tree", help="a tree's name or file to replay (default: make the best)")
    parser.add_argument("--num-nodes", type=int, default=8, metavar="N", help="of the best tree")
    _add_quantization(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="alias, folder, .gguf file or hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is random")
    _add_quantization(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantization",
        choices=("8bit", "4bit"),
        help="load the frozen backbone so, by bitsandbytes",
    )


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the others have their defaults in the dataclasses."""
    values = ((name, getattr(arguments, name)) for name in names)
    return {name: value for name, value in values if value is not None}


def _data(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from medusa_trt.runtime.bundle import Bundle
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.distill import DataOptions, generate_data, seed_prompts

    names = ("num_conversations", "batch_size", "num_turns", "max_new_tokens", "temperatures")
    options = DataOptions(**_given(arguments, *names, "keep_features", "seed"))
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


def _train_options(arguments: argparse.Namespace) -> "TrainOptions":
    from medusa_trt.training.heads_model import HeadsShape
    from medusa_trt.training.options import TrainOptions

    shape = _given(
        arguments,
        *("num_heads", "num_layers", "has_root_map", "has_projection", "has_own_unembedding"),
    )
    given = _given(
        arguments,
        *("batch_rows", "batch_size", "accumulation", "max_steps", "num_sampled"),
        *("num_checkpoints", "num_nodes", "max_length", "num_epochs", "learning_rate"),
        *("weight_decay", "soft_weight", "decay", "ridge", "held_out_fraction", "bf16", "seed"),
        "quantization",
    )
    if arguments.draft_vocab_size is not None:
        given["draft_vocab_size"] = arguments.draft_vocab_size or None
    return TrainOptions(shape=HeadsShape(**shape), **given)


def _joint_options(arguments: argparse.Namespace) -> "JointOptions":
    from medusa_trt.training.options import JointOptions

    given = _given(arguments, "heads_factor", "heads_weight", "lora_rank", "lora_alpha")
    if arguments.joint_learning_rate is not None:
        given["learning_rate"] = arguments.joint_learning_rate
    if arguments.joint_epochs is not None:
        given["num_epochs"] = arguments.joint_epochs
    return JointOptions(heads=_train_options(arguments), **given)


def _heads(arguments: argparse.Namespace) -> None:
    options = _train_options(arguments)
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.medusa1 import load_split, train_heads
    from medusa_trt.training.report import replaced_folder, save_heads, save_report
    from medusa_trt.training.run_record import check_same_run
    from medusa_trt.training.shards import read_spec

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
    from medusa_trt.export.head_checkpoint import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.medusa1 import load_split
    from medusa_trt.training.medusa2 import save_combined, train_joint
    from medusa_trt.training.report import replaced_folder, save_report
    from medusa_trt.training.run_record import check_same_run
    from medusa_trt.training.shards import read_spec

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

    from medusa_trt.export.head_checkpoint import heads_from_path
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
