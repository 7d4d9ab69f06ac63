"""`medusa-trt calibrate`: measures this machine and the heads, and fits a bundle to them."""

import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from medusa_trt.calibration.options import (
    DEFAULT_MAX_NEW_TOKENS,
    LatencyOptions,
    QuantizationOptions,
    ReplySettings,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.cli.arguments import EngineArguments, FolderArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.interrupts import find_interrupt_code

if TYPE_CHECKING:
    from rich.table import Table

    from medusa_trt.calibration.calibrator import Calibrator
    from medusa_trt.calibration.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateArguments(FolderArguments):
    """A bundle and its engine.

    Attributes:
        engine: how the bundle's engine is created.
    """

    engine: EngineArguments = field(default_factory=EngineArguments)

    def open(self) -> "Calibrator":
        """Opens the bundle and what is known of it.

        Raises:
            MedusaError: the bundle or its calibration is damaged.
        """
        from medusa_trt.calibration.calibrator import Calibrator

        engine = self.engine
        return Calibrator(self.bundle, threads=engine.num_threads, max_length=engine.max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepliesArguments(CalibrateArguments):
    """Replies of the model, on which something is measured.

    Attributes:
        prompts: where the prompts come from: packaged, mt-bench, or a file with JSON lines of
            "prompt" or "turns" (the first turn counts) or with a prompt on each line.
        num_prompts: number of prompts to use (default: all, at most 64).
        max_new_tokens: most tokens of each reply.
        seed: seed of the first reply; each further reply has the next number.
    """

    prompts: Annotated[str, "--prompts SOURCE"] = "packaged"
    num_prompts: int | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    seed: int = 0

    def make_settings(self, temperature: float = 0.0) -> ReplySettings:
        """Makes the settings of the replies.

        Raises:
            MedusaError: a setting is out of range, or the prompts cannot be read. The model is not
                loaded before this is known.
        """
        from medusa_trt.calibration.prompts import digest_from_source, prompts_from_source

        prompts_from_source(self.prompts, self.num_prompts)
        return ReplySettings(
            prompts=self.prompts,
            prompts_sha256=digest_from_source(self.prompts),
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsArguments(RepliesArguments):
    """Measure how often the drafts of each head are right, along the model's own replies.

    Attributes:
        temperature: temperature of the replies; 0 takes the likeliest token.
    """

    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyArguments(CalibrateArguments):
    """Measure the time of a step by its number of nodes and of tokens in the KV cache.

    Attributes:
        again: measure again what was measured before on this machine.
        latency: which steps are timed.
    """

    again: bool = False

    latency: Annotated[LatencyOptions, ("sizes", "contexts", "rounds", "batch_size")] = field(
        default_factory=LatencyOptions
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeArguments(CalibrateArguments):
    """Choose the draft tree that is fastest on this machine, and make it the bundle's tree.

    Measures the heads and the latency with their defaults, unless they were measured before on this
    machine with these versions.

    Attributes:
        dry_run: leave the bundle's tree as it is.
        again: measure the latency again, if it was measured before.
        tree: what the tree is searched for.
    """

    dry_run: bool = False
    again: bool = False
    tree: TreeOptions = field(default_factory=TreeOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdArguments(RepliesArguments):
    """Compare thresholds of typical acceptance, and make the best ones the bundle's defaults.

    They are compared by their speed and their quality. Replies are made by the heads alone, without
    prompt lookup.

    Attributes:
        num_prompts: number of prompts to use.
        dry_run: leave the bundle's thresholds as they are.
        threshold: which thresholds are compared, and what is recommended.
    """

    num_prompts: int | None = 12
    dry_run: bool = False
    threshold: ThresholdOptions = field(default_factory=ThresholdOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationArguments(RepliesArguments):
    """Choose a format for each weight matrix, under a budget of quality or of size.

    Attributes:
        num_prompts: number of prompts to use.
        quantization: what the formats are chosen for.
    """

    num_prompts: int | None = 8
    max_new_tokens: int = 64
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)


def measure_heads(arguments: HeadsArguments) -> int:
    settings = arguments.make_settings(arguments.temperature)
    from medusa_trt.calibration.report.tables import tabulate_heads

    calibrator = arguments.open()
    section = calibrator.measure_heads(settings, arguments.num_prompts)
    text = f"The bundle's tree adds {section.accept_length:.3f} tokens per step on these replies."
    return _report(calibrator, tabulate_heads(section), [text], section.origin)


def measure_latency(arguments: LatencyArguments) -> int:
    from medusa_trt.calibration.report.tables import tabulate_latency

    calibrator = arguments.open()
    section = calibrator.measure_latency(arguments.latency, again=arguments.again)
    texts = [] if section.warning is None else [section.warning]
    return _report(calibrator, tabulate_latency(section), texts, section.origin)


def search_tree(arguments: TreeArguments) -> int:
    from medusa_trt.calibration.report.tables import tabulate_tree

    calibrator = arguments.open()
    section = calibrator.search_tree(
        arguments.tree, dry_run=arguments.dry_run, again=arguments.again
    )
    name = calibrator.bundle.tree.name
    done = f"The bundle's tree is {name}." if section.written else "The bundle was left as it is."
    return _report(calibrator, tabulate_tree(section), [section.advice, done], section.origin)


def compare_thresholds(arguments: ThresholdArguments) -> int:
    settings = arguments.make_settings()
    from medusa_trt.calibration.report.tables import tabulate_threshold, text_from_recommendation

    calibrator = arguments.open()
    section = calibrator.compare_thresholds(
        settings, arguments.threshold, arguments.num_prompts, dry_run=arguments.dry_run
    )
    texts = [text_from_recommendation(advice) for advice in section.recommendations]
    texts.append(
        "Replies with --acceptance typical have these thresholds by default."
        if section.written
        else "The bundle was left as it is."
    )
    return _report(calibrator, tabulate_threshold(section), texts, section.origin)


def plan_quantization(arguments: QuantizationArguments) -> int:
    settings = arguments.make_settings()
    from medusa_trt.calibration.quantization.section import MODELOPT_FILE, QUANTIZATION_PLAN_FILE
    from medusa_trt.calibration.report.tables import tabulate_plans

    calibrator = arguments.open()
    section = calibrator.plan_quantization(settings, arguments.quantization, arguments.num_prompts)
    texts = [section.advice]
    if section.origin.is_complete:
        path = calibrator.folder / QUANTIZATION_PLAN_FILE
        command = ["medusa-export", "--model", arguments.quantization.model or section.model]
        command += ["--target", section.target, "--quantization-plan", str(path)]
        texts.append(f"To use it: {shlex.join(command)}")
        if (modelopt := calibrator.folder / MODELOPT_FILE).exists():
            texts.append(
                f"{modelopt} has the arguments of modelopt.onnx.quantization.quantize for the "
                "verify.onnx of an export with --precision fp16."
            )
    return _report(calibrator, tabulate_plans(section), texts, section.origin)


def _report(calibrator: "Calibrator", table: "Table", texts: list[str], origin: "Origin") -> int:
    """Shows the results of a calibration, and returns the exit code."""
    from medusa_trt.calibration.report.html import HTML_FILE
    from medusa_trt.calibration.report.plots import can_plot

    console = make_table_console()
    console.print(table)
    for text in texts:
        console.print(text, markup=False)
    print(f"wrote {calibrator.folder / HTML_FILE}", file=sys.stderr)
    if not can_plot():
        print("it has no plots: pip install 'medusa-trt[bench]'", file=sys.stderr)
    if not origin.is_complete:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return find_interrupt_code()
    return 0


VERBS = {
    "calibrate heads": Verb(HeadsArguments, measure_heads),
    "calibrate latency": Verb(LatencyArguments, measure_latency),
    "calibrate tree": Verb(TreeArguments, search_tree),
    "calibrate threshold": Verb(ThresholdArguments, compare_thresholds),
    "calibrate quantization": Verb(QuantizationArguments, plan_quantization),
}
