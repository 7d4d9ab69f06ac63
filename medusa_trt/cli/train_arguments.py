"""The command line's options for training; the defaults are the options' own."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import get_args

from medusa_trt.training.options import (
    DataOptions,
    HeadsShape,
    JointOptions,
    Quantization,
    TrainOptions,
)

_MODEL = "alias, folder, .gguf file or hub id"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which conversations are made, and by what."""
    options = DataOptions()
    _add_common(parser, "where to write the data", options.seed)
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
        help="let this bundle's engine reply: the model as it will be run, and faster on a CPU "
        "(default: torch replies)",
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
        default=",".join(f"{value:g}" for value in options.temperatures),
        metavar="LIST",
        help="temperatures of the batches in turn; 0 is greedy",
    )
    _add_numbers(
        parser,
        options,
        num_turns="replies of a conversation; the model writes the user's turns too",
        batch_size="conversations generated together",
        max_new_tokens="limit on each reply, in tokens",
    )
    parser.add_argument(
        "--no-features",
        dest="keep_features",
        action="store_false",
        help="do not keep hidden states: smaller data, and training runs the backbone",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What heads are made of, and how they are trained."""
    options, shape = TrainOptions(), HeadsShape()
    _add_common(parser, "where to write the result and its checkpoints", options.seed)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="what train data wrote; several are taken together",
    )
    group = parser.add_argument_group("heads")
    _add_numbers(
        group,
        shape,
        num_heads="heads; each drafts one token further ahead",
        num_layers="residual blocks of each head",
    )
    for name, help_ in (
        ("root_map", "a linear map of the hidden state and the root token, before the blocks"),
        ("projection", "a linear map after the blocks"),
        ("own_unembedding", "an unembedding for each head instead of the backbone's"),
    ):
        group.add_argument(
            _flag(name),
            dest=f"has_{name}",
            action=argparse.BooleanOptionalAction,
            default=getattr(shape, f"has_{name}"),
            help=help_,
        )
    _add_numbers(
        group, options, draft_vocab_size="draft only the N most frequent tokens; 0 for all"
    )
    group = parser.add_argument_group("training")
    _add_numbers(
        group,
        options,
        num_epochs="passes over the data",
        max_steps="end after so many updates (default: after --num-epochs)",
        accumulation="pieces of an update",
        batch_rows="reply tokens in a piece, where the data has hidden states",
        batch_size="conversations in a piece, where the backbone runs",
        max_length="cut conversations to so many tokens, where the backbone runs",
        learning_rate="top learning rate of the heads",
        weight_decay="weight decay of AdamW",
        soft_weight="share of the teacher's best tokens in a target; 0: the token alone",
        decay="λ: head k counts λ^k in the loss",
        num_sampled="sample the softmax over N tokens besides the targets (default: over all)",
        ridge="penalty of the first guess of the root map or projection",
    )
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="train in mixed precision (default: where the hardware has it)",
    )
    group = parser.add_argument_group("measuring")
    _add_numbers(
        group,
        options,
        held_out_fraction="share of the prompts to measure on and not to train on",
        num_checkpoints="checkpoints of a run; each is measured",
        num_nodes="nodes of the tree that is measured, with the root",
    )


def add_joint_arguments(parser: argparse.ArgumentParser) -> None:
    """What the second stage of Medusa-2 adds."""
    options = JointOptions()
    add_training_arguments(parser)
    group = parser.add_argument_group("second stage")
    group.add_argument(
        "--heads",
        type=Path,
        metavar="PATH",
        help="trained heads to begin with (default: a first stage trains them)",
    )
    _add_numbers(
        group,
        options,
        lora_rank="rank of the backbone's adapter",
        lora_alpha="the adapter counts N / rank times",
    )
    for name, help_ in (
        ("learning_rate", "top learning rate of the backbone's adapter"),
        ("num_epochs", "passes over the data in this stage"),
    ):
        group.add_argument(
            _flag(f"joint_{name.removeprefix('num_')}"),
            type=float,
            default=getattr(options, name),
            metavar="X",
            help=help_,
        )
    _add_numbers(
        group,
        options,
        heads_factor="learning rate of the heads, in multiples of the adapter's",
        heads_weight="weight of the heads' loss at the end; it rises from 0",
    )


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Which heads are measured, and on what."""
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("heads", type=Path, nargs="+", metavar="HEADS", help="head checkpoints")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="as train data takes them; the first turns are asked (default: MT-bench's 80)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=96,
        metavar="N",
        help="limit on each reply, in tokens",
    )
    parser.add_argument(
        "--tree", help="a tree's name or file to measure with (default: make the best)"
    )
    parser.add_argument(
        "--num-nodes", type=int, default=8, metavar="N", help="nodes of the best tree"
    )
    _add_quantization(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def _add_common(parser: argparse.ArgumentParser, output: str, seed: int) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=output)
    parser.add_argument(
        "--seed", type=int, default=seed, metavar="N", help="seed of all that is random"
    )
    _add_quantization(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantization",
        choices=get_args(Quantization),
        help="load the frozen backbone in 8 or 4 bits, by bitsandbytes (default: as it is)",
    )


def _add_numbers(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    options: DataOptions | HeadsShape | TrainOptions | JointOptions,
    **helps: str,
) -> None:
    """An option for each of these attributes, of their type and with their value as default."""
    types = {field.name: field.type for field in fields(options)}
    for name, help_ in helps.items():
        number = float if types[name] is float else int
        parser.add_argument(
            _flag(name),
            type=number,
            default=getattr(options, name),
            metavar="X" if number is float else "N",
            help=help_,
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
