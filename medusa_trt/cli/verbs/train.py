"""`medusa-trt train`: data, heads and joint models, and what the heads are worth."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from medusa_trt.cli.parser import Verb
from medusa_trt.errors import TrainingError, check_range, require_extra
from medusa_trt.files import check_writable, replace_files
from medusa_trt.training.options import DataOptions, JointOptions, Quantization, TrainOptions
from medusa_trt.tree_configs import MedusaTree, load_tree

if TYPE_CHECKING:
    from medusa_trt.training.accuracy import Accuracy

Arguments = TypeVar("Arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """A model to train heads for.

    Attributes:
        model: the model: an alias, a folder, a .gguf file or a hub id.
    """

    model: Annotated[str, "MODEL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataArguments(ModelArguments):
    """Let the model reply to prompts, and keep the conversations to train on.

    A run that was interrupted goes on where it ended.

    Attributes:
        output: folder of the data.
        prompts: JSON lines with "prompt" or "turns", or a text with a prompt on each line (default:
            the prompts of this package).
        bundle: let the engine of this bundle make the replies: the model as it will run, and faster
            on a CPU (default: torch makes them).
        quantization: load the model in 8 or 4 bits by bitsandbytes (default: as it is).
        data: how the data is made.
    """

    output: Annotated[Path, "--output FOLDER"]
    prompts: Annotated[Path | None, "--prompts FILE"] = None
    bundle: Annotated[Path | None, "--bundle FOLDER"] = None
    quantization: Quantization | None = None
    data: DataOptions = field(default_factory=DataOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingArguments(ModelArguments):
    """A model, what its heads are trained on, and where the result goes.

    Attributes:
        data: folders that medusa-trt train data wrote; several are taken together.
        output: folder of the result and of its checkpoints.
    """

    data: Annotated[tuple[Path, ...], "--data FOLDER ..."]
    output: Annotated[Path, "--output FOLDER"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsArguments(TrainingArguments):
    """Train heads on the data while the model stays as it is: Medusa-1.

    A run that was interrupted goes on from its last checkpoint.

    Attributes:
        heads: heads to begin with, whose shape and draft vocabulary are kept (default: new ones).
        training: how the heads are trained.
    """

    heads: Annotated[Path | None, "--heads PATH"] = None
    training: TrainOptions = field(default_factory=TrainOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointArguments(TrainingArguments):
    """Train heads and the model together: Medusa-2.

    A first stage trains the heads alone; the second also trains an adapter of the model.

    Attributes:
        heads: trained heads to begin with (default: a first stage trains them).
        joint: how both are trained.
    """

    heads: Annotated[Path | None, "--heads PATH"] = None
    joint: JointOptions = field(default_factory=JointOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureArguments(ModelArguments):
    """Measure heads on the model's replies to prompts that the heads were not trained on.

    Attributes:
        heads: head checkpoints: files or folders.
        prompts: a file of prompts, as train data takes it; the first turns are used (default:
            MT-bench's 80).
        max_new_tokens: most tokens of each reply.
        tree: the tree to measure with, by name or file (default: the best of `num_nodes`).
        num_nodes: nodes of the best tree, the root included.
        quantization: load the model in 8 or 4 bits by bitsandbytes (default: as it is).
    """

    heads: Annotated[tuple[Path, ...], "HEADS ..."]
    prompts: Annotated[Path | None, "--prompts FILE"] = None
    max_new_tokens: int = 96
    tree: Annotated[MedusaTree | None, load_tree] = None
    num_nodes: int = 8
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        check_range(self, TrainingError, "max_new_tokens num_nodes", 2)


def make_data(arguments: DataArguments) -> None:
    """Makes training data, and shows how far it is."""
    _check_packages()
    from medusa_trt.runtime.bundle import Bundle
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.bars import BatchesBar
    from medusa_trt.training.data.distillation import generate_data, load_seed_prompts

    options = arguments.data
    check_writable(arguments.output, TrainingError, is_folder=True)
    prompts = load_seed_prompts(arguments.prompts)
    bundle = None if arguments.bundle is None else Bundle.open(arguments.bundle)
    base = load_backbone(arguments.model, quantization=arguments.quantization)
    total = options.num_conversations or len(prompts)
    num_shards, num_tokens = -(-total // options.batch_size), 0
    with BatchesBar("data", num_shards, options.num_turns * options.max_new_tokens) as bar:
        shards = generate_data(base, prompts, arguments.output, options, bundle, bar.advance)
        for number, shard in enumerate(shards, start=1):
            num_tokens += 0 if shard is None else int((shard.turns > 0).sum())
            speed = f"{num_tokens} tokens, {num_tokens / max(bar.elapsed_s, 1e-9):.0f}/s"
            bar.finish_batch(f"{number} of {num_shards} files, {speed}", is_old=shard is None)
    print(f"wrote {arguments.output}: {num_tokens} new reply tokens", file=sys.stderr)


def train_heads_alone(arguments: HeadsArguments) -> None:
    """Trains heads, and shows what they are worth."""
    _check_packages()
    from medusa_trt.export.heads.loading import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.data.shards import read_spec
    from medusa_trt.training.medusa1 import load_split, train_heads
    from medusa_trt.training.report import save_heads, save_report
    from medusa_trt.training.run_record import check_same_run

    options = arguments.training
    specs = [read_spec(folder) for folder in arguments.data]
    heads = None if arguments.heads is None else heads_from_path(arguments.heads)
    check_same_run(arguments.output, specs, options)
    base = load_backbone(arguments.model, quantization=options.quantization)
    split = load_split(base, arguments.data, options.held_out_fraction)
    result = train_heads(base, split, arguments.output / "checkpoints", options, heads)
    with replace_files(arguments.output, TrainingError) as folder:
        save_heads(result.heads, folder, base.source.name)
        save_report(result, folder, f"Medusa heads for {base.source.name}", specs, options)
    _report(result.accuracy, arguments.output)


def train_jointly(arguments: JointArguments) -> None:
    """Trains heads and the model, and shows what the heads are worth."""
    _check_packages(with_adapters=True)
    import torch

    from medusa_trt.export.heads.loading import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.data.shards import read_spec
    from medusa_trt.training.medusa1 import load_split
    from medusa_trt.training.medusa2 import save_combined, train_joint
    from medusa_trt.training.report import save_report
    from medusa_trt.training.run_record import check_same_run

    options = arguments.joint
    specs = [read_spec(folder) for folder in arguments.data]
    heads = None if arguments.heads is None else heads_from_path(arguments.heads)
    check_same_run(arguments.output, specs, options)
    base = load_backbone(arguments.model, dtype=torch.float32)
    split = load_split(base, arguments.data, options.heads.held_out_fraction)
    result = train_joint(base, split, arguments.output / "checkpoints", options, heads)
    with replace_files(arguments.output, TrainingError) as folder:
        save_combined(base, result.model, result.second.heads, folder)
        title = f"{base.source.name} with Medusa heads, trained together"
        save_report(result.second, folder, title, specs, options)
    _report(result.second.accuracy, arguments.output)


def measure(arguments: MeasureArguments) -> None:
    """Shows what heads are worth."""
    _check_packages()
    import torch

    from medusa_trt.export.heads.loading import heads_from_path
    from medusa_trt.training.backbone import load_backbone
    from medusa_trt.training.measurement import (
        generate_replies,
        load_first_turns,
        measure_heads,
    )

    turns = load_first_turns(arguments.prompts)
    all_heads = [heads_from_path(path) for path in arguments.heads]
    base = load_backbone(arguments.model, torch.float32, arguments.quantization)
    replies = generate_replies(base, turns, arguments.max_new_tokens)
    for path, heads in zip(arguments.heads, all_heads, strict=True):
        print(path)
        _print_accuracy(measure_heads(base, replies, heads, arguments.num_nodes, arguments.tree))


def _report(accuracy: "Accuracy", output: Path) -> None:
    _print_accuracy(accuracy)
    print(f"wrote {output}", file=sys.stderr)


def _print_accuracy(accuracy: "Accuracy") -> None:
    from medusa_trt.training.report import format_accuracy

    print(format_accuracy(accuracy))
    print(
        f"{accuracy.tokens_per_step:.3f} tokens per step with {accuracy.tree.num_nodes} nodes, "
        f"on {accuracy.num_tokens} tokens"
    )


def _check_packages(*, with_adapters: bool = False) -> None:
    """Checks that what training needs is installed, and keeps its warnings down.

    Raises:
        MedusaError: a package is missing.
    """
    with require_extra("training", "train"):
        import torch  # noqa: F401
        import transformers  # noqa: F401

        if with_adapters:
            import peft  # noqa: F401
    # bitsandbytes warns of each product of 8-bit weights.
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _resumable(run: Callable[[Arguments], None]) -> Callable[[Arguments], None]:
    """Makes a verb say after an interrupt that it can be gone on with."""

    def run_and_say(arguments: Arguments) -> None:
        try:
            run(arguments)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("run the same command again to go on")
            raise

    return run_and_say


VERBS = {
    "train data": Verb(DataArguments, _resumable(make_data)),
    "train heads": Verb(HeadsArguments, _resumable(train_heads_alone)),
    "train joint": Verb(JointArguments, _resumable(train_jointly)),
    "train measure": Verb(MeasureArguments, measure),
}
