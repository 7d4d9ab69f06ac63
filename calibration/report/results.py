"""What the calibrations of a bundle have found, as data: `calibration/calibration.json`."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from medusa_trt.calibration.bench.report import Machine, replaced_file
from medusa_trt.calibration.calibrate_options import (
    LatencyOptions,
    QuantizationOptions,
    ReplySettings,
    TreeOptions,
)
from medusa_trt.calibration.latency.curve import Interval
from medusa_trt.calibration.quantization.section import FrontierPoint, PlanResult, SiteCosts
from medusa_trt.calibration.threshold.summary import Recommendation, RuleSummary
from medusa_trt.calibration.trees.choice import TreeChoice
from medusa_trt.errors import CalibrationError

FOLDER = "calibration"
JSON_FILE = "calibration.json"
HTML_FILE = "report.html"
RANKS_FILE = "ranks.jsonl"
LATENCY_FILE = "latency.jsonl"
THRESHOLD_FILE = "threshold_heads.jsonl"
"""Not threshold.jsonl, whose replies were drafted by prompt lookup too."""
QUANTIZATION_PLAN_FILE = "quantization.json"
MODELOPT_FILE = "modelopt.json"

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a section comes from.

    Attributes:
        command: as typed.
        date: when it was written, in ISO format.
        duration_s: seconds of measuring in its last run.
        is_complete: false after an interruption; running it again goes on.
        machine: what it ran on.
    """

    command: str
    date: str
    duration_s: float
    is_complete: bool
    machine: Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSection:
    """Accuracies of the heads.

    Attributes:
        origin: see there.
        settings: of the replies.
        num_prompts: as many as were asked for; None for the default.
        num_replies: as many as there are.
        num_tokens: their tokens.
        counts: samples of each head.
        top_k_accuracies: (num_heads, top_k) share of them among the first k candidates.
        joint: for each depth the share of positions where all heads down to it are right at once.
        independent: the same if they were independent.
        tree: the bundle's tree.
        accept_length: tokens a step of it, replayed.
    """

    origin: Origin
    settings: ReplySettings
    num_prompts: int | None
    num_replies: int
    num_tokens: int
    counts: list[int]
    top_k_accuracies: list[list[float]]
    joint: list[float]
    independent: list[float]
    tree: str
    accept_length: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPoint:
    """A measured step; see `LatencyRecord`."""

    context: int
    num_nodes: int
    num_samples: int
    step_ms: Interval
    engine_ms: float
    host_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySection:
    """Step times for one number of threads and one batch size, that of `options`."""

    origin: Origin
    options: LatencyOptions
    threads: int | None
    points: list[LatencyPoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSection:
    """The search for a tree. `written` says whether it is the bundle's now."""

    origin: Origin
    options: TreeOptions
    context: int
    threads: int | None
    settings: ReplySettings
    num_replies: int
    choice: TreeChoice
    previous_tree: tuple[tuple[int, ...], ...]
    written: bool
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSection:
    """Typical acceptance against the sampler."""

    origin: Origin
    settings: ReplySettings
    tree: str
    num_prompts: int
    rules: tuple[RuleSummary, ...]
    recommendations: tuple[Recommendation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSection:
    """Formats of the model's matrices.

    Attributes:
        origin: see there.
        settings: of the replies that the models are compared on.
        options: the budget.
        model: the unquantized model.
        target: where the plan is to run.
        num_replies: how many there are.
        num_positions: their tokens, each of which is predicted.
        sites: in the model's order, each alone.
        frontier: the least predicted KL of some sizes; empty until all sites are measured.
        plans: all sites at once; empty until then.
        advice: what was found.
    """

    origin: Origin
    settings: ReplySettings
    options: QuantizationOptions
    model: str
    target: str
    num_replies: int
    num_positions: int
    sites: tuple[SiteCosts, ...]
    frontier: tuple[FrontierPoint, ...]
    plans: tuple[PlanResult, ...]
    advice: str


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that was found; a section is missing until its calibration has run.

    `latency` has a section for each batch size and number of threads.
    """

    format_version: int = FORMAT_VERSION
    model: str
    target: str
    precision: str
    heads: HeadsSection | None = None
    latency: tuple[LatencySection, ...] = ()
    tree: TreeSection | None = None
    threshold: ThresholdSection | None = None
    quantization: QuantizationSection | None = None


def load_calibration(folder: Path, empty: Calibration) -> Calibration:
    """Reads what is known, `empty` where nothing is.

    Raises:
        CalibrationError: the file is damaged or of another release.
    """
    path = folder / JSON_FILE
    if not path.is_file():
        return empty
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CalibrationError(
            f"cannot read {path} ({error}): delete it, and run the calibrations again; what they "
            "have measured is kept"
        ) from error
    if found.format_version != FORMAT_VERSION:
        raise CalibrationError(
            f"{path} has format version {found.format_version}, this release reads "
            f"{FORMAT_VERSION}: delete it"
        )
    return found


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Writes the JSON file and the report for people.

    Raises:
        MedusaError: one cannot be written.
    """
    from medusa_trt.calibration.report.html import html_from_calibration

    folder.mkdir(exist_ok=True)
    with replaced_file(folder / JSON_FILE) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2))
    with replaced_file(folder / HTML_FILE) as temporary:
        temporary.write_text(html_from_calibration(calibration), encoding="utf-8")
