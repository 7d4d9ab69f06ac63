"""The stages of the report: what each runs, and why a machine cannot run it."""

import importlib.util
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medusa_trt.calibration.gpu_report.options import GpuReportOptions, StageName
from medusa_trt.export.targets import TARGETS
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.device.memory import read_compute_capability
from medusa_trt.runtime.engines.engine_record import MODULES, list_engine_folders

LOGS_FOLDER = "logs"
CHECK_TREE_NODES = 128
"""Nodes of a step that the engines are built for, so that the checks and all sizes fit."""

_NEEDS_NO_GPU = ("machine", "bundle")

Status = Literal["done", "failed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A command of medusa-trt.

    Attributes:
        name: name of the stage.
        words: the command after `medusa-trt`.
        reason: why it is not run here; None if it is.
    """

    name: StageName
    words: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What became of a stage.

    Attributes:
        name: name of the stage.
        status: "done", "failed" or "not run".
        reason: why it failed or was not run.
        duration_s: how long it took.
        command: the command; it can be given again.
    """

    name: StageName
    status: Status
    reason: str = ""
    duration_s: float = 0.0
    command: str = ""


def list_stages(bundle: Bundle, options: GpuReportOptions, folder: Path) -> list[Stage]:
    """Lists all stages, with the reasons of this machine."""
    path = str(bundle.path)
    report = ("gpu-report", path, "--output", str(folder))
    build = ("build", path, "--max-tree-nodes", str(CHECK_TREE_NODES))
    bench = (
        *("bench", path, "--json", str(folder / "bench.json")),
        *("--num-prompts", str(options.num_prompts)),
        *("--max-new-tokens", str(options.max_new_tokens)),
    )
    latency = (
        *("calibrate", "latency", path, "--again", "--rounds", str(options.rounds)),
        *("--sizes", _join(options.sizes), "--contexts", _join(options.contexts)),
    )
    words: dict[StageName, tuple[str, ...]] = {
        "machine": ("doctor",),
        "bundle": ("inspect", path),
        "build": (*build, "--overwrite") if options.rebuild else build,
        "graphs": (*report, "--stage", "graphs"),
        "steps": (*report, "--stage", "steps"),
        "bench": bench,
        "latency": latency,
    }
    reason = find_reason(bundle)
    stages = []
    for name, command in words.items():
        own_reason = None if name in _NEEDS_NO_GPU else reason
        if name == "build":
            own_reason = _find_build_reason(bundle, options) or reason
        stages.append(Stage(name=name, words=command, reason=own_reason))
    return stages


def find_reason(bundle: Bundle) -> str | None:
    """Finds out why this machine cannot run a bundle; None if it can."""
    target = TARGETS[bundle.manifest.target.name]
    if target.name == "ort-cpu":
        return None
    if target.product is not None and importlib.util.find_spec(MODULES[target.product]) is None:
        return f"{target.product} is not installed: pip install 'medusa-trt[{target.product}]'"
    if read_compute_capability() is None:
        return "no CUDA device"
    return None


def _find_build_reason(bundle: Bundle, options: GpuReportOptions) -> str | None:
    """Finds out why engines need not be built."""
    if TARGETS[bundle.manifest.target.name].product is None:
        return f"the target {bundle.manifest.target.name} needs no engines"
    if (folders := list_engine_folders(bundle)) and not options.rebuild:
        built = ", ".join(folder.name for folder in folders)
        return f"there are engines already ({built}): --rebuild builds them again"
    return None


def run_stages(
    stages: Iterable[Stage], folder: Path, minutes: float, tell: Callable[[str], None]
) -> Iterator[StageResult]:
    """Runs each stage in a process of its own, so that a crash ends only one of them.

    What a stage prints goes to a file in `LOGS_FOLDER`.
    """
    (folder / LOGS_FOLDER).mkdir(exist_ok=True)
    for stage in stages:
        command = shlex.join(("medusa-trt", *stage.words))
        if stage.reason is not None:
            tell(f"{stage.name}: not run: {stage.reason}")
            yield StageResult(
                name=stage.name, status="not run", reason=stage.reason, command=command
            )
            continue
        tell(f"{stage.name}: {command}")
        start_s = time.perf_counter()
        reason = _run_command(stage, folder, minutes)
        duration_s = round(time.perf_counter() - start_s, 1)
        status: Status = "done" if reason is None else "failed"
        tell(f"{stage.name}: {status} after {duration_s:.0f} s{f': {reason}' if reason else ''}")
        yield StageResult(
            name=stage.name,
            status=status,
            reason=reason or "",
            duration_s=duration_s,
            command=command,
        )


def _run_command(stage: Stage, folder: Path, minutes: float) -> str | None:
    """Runs a command, and returns why it failed; None if it did not."""
    path = folder / LOGS_FOLDER / f"{stage.name}.log"
    with path.open("wb") as log:
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "medusa_trt", *stage.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired:
            return f"it took longer than {minutes:g} minutes (--stage-minutes)"
    if ended.returncode == 0:
        return None
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()[:300]}" if lines else ""
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}{last}"
    return f"exit code {ended.returncode}{last}"


def _join(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
