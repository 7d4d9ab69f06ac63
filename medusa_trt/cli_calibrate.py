"""The command line's calibrations: `medusa-trt calibrate heads|latency|tree|... BUNDLE`."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.calibration.calibrate_options import (
    DEFAULT_MAX_KL,
    DEFAULT_MAX_NEW_TOKENS,
    LatencyOptions,
    QuantizationOptions,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.errors import CalibrationError

if TYPE_CHECKING:
    from rich.table import Table

    from medusa_trt.calibration.calibrate import Calibrator
    from medusa_trt.calibration.calibrate_options import ReplySettings
    from medusa_trt.calibration.calibration_report import Origin

EXIT_INTERRUPTED = 130

_THRESHOLD_PROMPTS = 12
_QUANTIZATION_PROMPTS = 8
_QUANTIZATION_TOKENS = 64
_COLUMNS_OF_FILES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `calibrate`."""
    verbs = parser.add_subparsers(dest="calibration", required=True, metavar="WHAT")
    heads = _verb(verbs, "heads", "accuracies of the heads on the model's own replies", _heads)
    _add_replies(heads, num_prompts=None)
    heads.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (the default)"
    )
    _add_latency(_verb(verbs, "latency", "time of a step against its size", _latency))
    _add_tree(_verb(verbs, "tree", "the fastest tree on this machine", _tree))
    threshold = _verb(verbs, "threshold", "thresholds of typical acceptance", _threshold)
    _add_replies(threshold, num_prompts=_THRESHOLD_PROMPTS)
    _add_threshold(threshold)
    quantization = _verb(
        verbs, "quantization", "a format for each weight, under a budget", _quantization
    )
    _add_replies(
        quantization, num_prompts=_QUANTIZATION_PROMPTS, max_new_tokens=_QUANTIZATION_TOKENS
    )
    _add_quantization(quantization)


def run(arguments: argparse.Namespace) -> int:
    """Calibrates and reports.

    Returns:
        The exit code: 130 after a Ctrl-C, which still reports what was measured.

    Raises:
        MedusaError: whatever the user can cause.
    """
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    help_: str,
    command: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help_)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one step")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest sequence, in tokens")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(command=command)
    return parser


def _add_replies(
    parser: argparse.ArgumentParser,
    *,
    num_prompts: int | None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
) -> None:
    parser.add_argument(
        "--prompts",
        default="packaged",
        metavar="SOURCE",
        help='packaged, mt-bench, or a file: JSON lines with "prompt" or "turns" (the first is '
        "asked), or text with a prompt on each line (default: %(default)s)",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        default=num_prompts,
        metavar="N",
        help=f"how many of them (default: {num_prompts or 'up to 64'})",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="limit on each reply (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of sampling (default: %(default)s)"
    )


def _add_latency(parser: argparse.ArgumentParser) -> None:
    options = LatencyOptions()
    for name, values, help_ in (
        ("--sizes", options.sizes, "numbers of nodes"),
        ("--contexts", options.contexts, "tokens in the cache"),
    ):
        shown = ",".join(map(str, values))
        parser.add_argument(
            name, default=shown, metavar="LIST", help=f"{help_} (default: %(default)s)"
        )
    parser.add_argument(
        "--rounds",
        type=int,
        default=options.rounds,
        metavar="N",
        help="samples of each (default: %(default)s)",
    )
    _add_batch_size(parser)


def _add_tree(parser: argparse.ArgumentParser) -> None:
    options = TreeOptions()
    _add_batch_size(parser)
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens in the cache (default: the replies' mean)"
    )
    parser.add_argument(
        "--max-nodes",
        type=int,
        default=options.max_nodes,
        metavar="N",
        help="most nodes of a tree (default: %(default)s)",
    )
    parser.add_argument(
        "--min-speedup",
        type=float,
        default=options.min_speedup,
        metavar="X",
        help="recommend plain decoding below it (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle's tree as it is")


def _add_threshold(parser: argparse.ArgumentParser) -> None:
    options = ThresholdOptions()
    for name, values, help_ in (
        ("--thresholds", options.thresholds, "values of ε"),
        ("--temperatures", options.temperatures, "temperatures"),
    ):
        shown = ",".join(f"{value:g}" for value in values)
        parser.add_argument(
            name, default=shown, metavar="LIST", help=f"{help_} (default: %(default)s)"
        )
    parser.add_argument(
        "--alpha", type=float, metavar="δ", help="one δ for all (default: sqrt(ε), as the paper)"
    )
    for name, loss, help_ in (
        ("--quality-loss", options.quality_loss, "nats a token less than the sampler's replies"),
        ("--diversity-loss", options.diversity_loss, "distinct-2 less than the sampler's replies"),
    ):
        parser.add_argument(
            name,
            type=float,
            default=loss,
            metavar="X",
            help=f"recommend nothing with {help_} (default: %(default)s)",
        )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="the unquantized model (default: what the bundle calls its model)"
    )
    parser.add_argument("--target", help="where the plan is to run (default: the bundle's target)")
    parser.add_argument(
        "--formats",
        metavar="LIST",
        help="to choose from (default: int4,int8 for ort-cpu, int4,int8,fp16 for a device)",
    )
    parser.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="the smallest plan with at most this KL divergence from the unquantized model, nats "
        f"a token (default: {DEFAULT_MAX_KL})",
    )
    parser.add_argument(
        "--max-size",
        type=float,
        metavar="MB",
        help="instead: the plan with the least KL divergence whose matrices take at most this",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="sequences stepped together (default: %(default)s)",
    )


def _heads(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments, arguments.temperature)
    from medusa_trt.calibration.calibration_tables import heads_table

    calibrator = _calibrator(arguments)
    section = calibrator.heads(settings, arguments.num_prompts)
    text = f"The bundle's tree adds {section.accept_length:.3f} tokens a step on these replies."
    return _report(calibrator, [heads_table(section)], [text], section.origin)


def _latency(arguments: argparse.Namespace) -> int:
    options = LatencyOptions(
        sizes=_integers(arguments.sizes, "--sizes"),
        contexts=_integers(arguments.contexts, "--contexts"),
        rounds=arguments.rounds,
        batch_size=arguments.batch_size,
    )
    from medusa_trt.calibration.calibration_tables import latency_table

    calibrator = _calibrator(arguments)
    section = calibrator.latency(options)
    return _report(calibrator, [latency_table(section)], [], section.origin)


def _tree(arguments: argparse.Namespace) -> int:
    options = TreeOptions(
        context=arguments.context,
        batch_size=arguments.batch_size,
        min_speedup=arguments.min_speedup,
        max_nodes=arguments.max_nodes,
    )
    from medusa_trt.calibration.calibration_tables import tree_table

    calibrator = _calibrator(arguments)
    section = calibrator.tree(options, dry_run=arguments.dry_run)
    name = calibrator.bundle.tree.name
    done = f"The bundle's tree is {name}." if section.written else "The bundle was left as it is."
    return _report(calibrator, [tree_table(section)], [section.advice, done], section.origin)


def _threshold(arguments: argparse.Namespace) -> int:
    options = ThresholdOptions(
        thresholds=_numbers(arguments.thresholds, "--thresholds"),
        alpha=arguments.alpha,
        temperatures=_numbers(arguments.temperatures, "--temperatures"),
        quality_loss=arguments.quality_loss,
        diversity_loss=arguments.diversity_loss,
    )
    settings = _settings(arguments, temperature=0.0)
    from medusa_trt.calibration.calibration_tables import recommendation_text, threshold_table

    calibrator = _calibrator(arguments)
    section = calibrator.threshold(settings, options, arguments.num_prompts)
    texts = [recommendation_text(found) for found in section.recommendations]
    return _report(calibrator, [threshold_table(section)], texts, section.origin)


def _quantization(arguments: argparse.Namespace) -> int:
    options = QuantizationOptions(
        model=arguments.model,
        target=arguments.target,
        formats=None if arguments.formats is None else tuple(arguments.formats.split(",")),
        max_kl=arguments.max_kl,
        max_megabytes=arguments.max_size,
    )
    settings = _settings(arguments, temperature=0.0)
    from medusa_trt.calibration.calibration_report import QUANTIZATION_PLAN_FILE
    from medusa_trt.calibration.calibration_tables import plans_table

    calibrator = _calibrator(arguments)
    section = calibrator.quantization(settings, options, arguments.num_prompts)
    texts = [section.advice]
    if section.origin.is_complete:
        path = calibrator.folder / QUANTIZATION_PLAN_FILE
        command = ["medusa-export", "--model", section.model, "--target", section.target]
        texts.append(f"To use it: {shlex.join([*command, '--quantization-plan', str(path)])}")
    return _report(calibrator, [plans_table(section)], texts, section.origin)


def _settings(arguments: argparse.Namespace, temperature: float) -> "ReplySettings":
    from medusa_trt.calibration.calibrate_options import ReplySettings
    from medusa_trt.calibration.replies import prompts_digest, prompts_from_source

    prompts_from_source(arguments.prompts, arguments.num_prompts)  # refused before the model loads
    return ReplySettings(
        prompts=arguments.prompts,
        prompts_sha256=prompts_digest(arguments.prompts),
        max_new_tokens=arguments.max_new_tokens,
        temperature=temperature,
        seed=arguments.seed,
    )


def _calibrator(arguments: argparse.Namespace) -> "Calibrator":
    from medusa_trt.calibration.calibrate import Calibrator

    return Calibrator(arguments.bundle, threads=arguments.threads, max_length=arguments.max_length)


def _report(
    calibrator: "Calibrator", tables: "list[Table]", texts: list[str], origin: "Origin"
) -> int:
    from rich.console import Console

    from medusa_trt.calibration.calibration_plots import can_plot
    from medusa_trt.calibration.calibration_report import HTML_FILE

    console = Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES)
    for table in tables:
        console.print(table)
    for text in texts:
        console.print(text, highlight=False, markup=False)
    print(f"wrote {calibrator.folder / HTML_FILE}", file=sys.stderr)
    if not can_plot():
        print("it has no plots: pip install 'medusa-trt[bench]'", file=sys.stderr)
    if not origin.is_complete:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _integers(text: str, name: str) -> tuple[int, ...]:
    numbers = _numbers(text, name)
    if not all(number.is_integer() for number in numbers):
        raise CalibrationError(f"{name} is {text!r}: give whole numbers with commas between them")
    return tuple(int(number) for number in numbers)


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CalibrationError(
            f"{name} is {text!r}: give numbers with commas between them"
        ) from error
