"""The command line's calibrations: `medusa-trt calibrate heads|latency|tree|... BUNDLE`."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.calibration.calibrate_options import (
    LatencyOptions,
    QuantizationOptions,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.cli.calibrate_arguments import (
    add_latency_arguments,
    add_quantization_arguments,
    add_replies_arguments,
    add_threshold_arguments,
    add_tree_arguments,
)
from medusa_trt.errors import CalibrationError
from medusa_trt.interrupts import interrupted_exit_code

if TYPE_CHECKING:
    from rich.table import Table

    from medusa_trt.calibration.calibrate_options import ReplySettings
    from medusa_trt.calibration.calibrator import Calibrator
    from medusa_trt.calibration.origin import Origin

_THRESHOLD_PROMPTS = 12
_QUANTIZATION_PROMPTS = 8
_QUANTIZATION_TOKENS = 64
_COLUMNS_OF_FILES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `calibrate`."""
    verbs = parser.add_subparsers(dest="calibration", required=True, metavar="WHAT")
    heads = _verb(verbs, "heads", "accuracies of the heads on the model's own replies", _heads)
    add_replies_arguments(heads, num_prompts=None)
    heads.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of the replies; 0 is greedy"
    )
    add_latency_arguments(_verb(verbs, "latency", "time of a step against its size", _latency))
    add_tree_arguments(_verb(verbs, "tree", "the fastest tree on this machine", _tree))
    threshold = _verb(
        verbs, "threshold", "thresholds of typical acceptance, without prompt lookup", _threshold
    )
    add_replies_arguments(threshold, num_prompts=_THRESHOLD_PROMPTS)
    add_threshold_arguments(threshold)
    quantization = _verb(
        verbs, "quantization", "a format for each weight, under a budget", _quantization
    )
    add_replies_arguments(
        quantization, num_prompts=_QUANTIZATION_PROMPTS, max_new_tokens=_QUANTIZATION_TOKENS
    )
    add_quantization_arguments(quantization)


def run(arguments: argparse.Namespace) -> int:
    """Calibrates and reports.

    Returns:
        The exit code: 130 after a Ctrl-C and 143 after SIGTERM, which still report what was
        measured.

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
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads for one step (default: as many as physical cores)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest sequence, in tokens (default: the bundle's limit)",
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(command=command)
    return parser


def _heads(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments, arguments.temperature)
    from medusa_trt.calibration.report.tables import heads_table

    calibrator = _calibrator(arguments)
    section = calibrator.measure_heads(settings, arguments.num_prompts)
    text = f"The bundle's tree adds {section.accept_length:.3f} tokens a step on these replies."
    return _report(calibrator, [heads_table(section)], [text], section.origin)


def _latency(arguments: argparse.Namespace) -> int:
    options = LatencyOptions(
        sizes=_integers(arguments.sizes, "--sizes"),
        contexts=_integers(arguments.contexts, "--contexts"),
        rounds=arguments.rounds,
        batch_size=arguments.batch_size,
    )
    from medusa_trt.calibration.report.tables import latency_table

    calibrator = _calibrator(arguments)
    section = calibrator.measure_latency(options)
    return _report(calibrator, [latency_table(section)], [], section.origin)


def _tree(arguments: argparse.Namespace) -> int:
    options = TreeOptions(
        context=arguments.context,
        batch_size=arguments.batch_size,
        min_speedup=arguments.min_speedup,
        max_nodes=arguments.max_nodes,
    )
    from medusa_trt.calibration.report.tables import tree_table

    calibrator = _calibrator(arguments)
    section = calibrator.search_tree(options, dry_run=arguments.dry_run)
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
    from medusa_trt.calibration.report.tables import recommendation_text, threshold_table

    calibrator = _calibrator(arguments)
    section = calibrator.compare_thresholds(settings, options, arguments.num_prompts)
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
    from medusa_trt.calibration.quantization.section import MODELOPT_FILE, QUANTIZATION_PLAN_FILE
    from medusa_trt.calibration.report.tables import plans_table

    calibrator = _calibrator(arguments)
    section = calibrator.plan_quantization(settings, options, arguments.num_prompts)
    texts = [section.advice]
    if section.origin.is_complete:
        path = calibrator.folder / QUANTIZATION_PLAN_FILE
        command = ["medusa-export", "--model", options.model or section.model]
        command += ["--target", section.target, "--quantization-plan", str(path)]
        texts.append(f"To use it: {shlex.join(command)}")
        if (modelopt := calibrator.folder / MODELOPT_FILE).exists():
            texts.append(
                f"{modelopt} has the arguments of modelopt.onnx.quantization.quantize for the "
                "verify.onnx of an export with --precision fp16."
            )
    return _report(calibrator, [plans_table(section)], texts, section.origin)


def _settings(arguments: argparse.Namespace, temperature: float) -> "ReplySettings":
    from medusa_trt.calibration.calibrate_options import ReplySettings
    from medusa_trt.calibration.prompts import digest_from_source, prompts_from_source

    prompts_from_source(arguments.prompts, arguments.num_prompts)  # refused before the model loads
    return ReplySettings(
        prompts=arguments.prompts,
        prompts_sha256=digest_from_source(arguments.prompts),
        max_new_tokens=arguments.max_new_tokens,
        temperature=temperature,
        seed=arguments.seed,
    )


def _calibrator(arguments: argparse.Namespace) -> "Calibrator":
    from medusa_trt.calibration.calibrator import Calibrator

    return Calibrator(arguments.bundle, threads=arguments.threads, max_length=arguments.max_length)


def _report(
    calibrator: "Calibrator", tables: "list[Table]", texts: list[str], origin: "Origin"
) -> int:
    from rich.console import Console

    from medusa_trt.calibration.report.html import HTML_FILE
    from medusa_trt.calibration.report.plots import can_plot

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
        return interrupted_exit_code()
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
