"""`medusa-trt gpu-report`: all checks and measurements of a bundle, in one folder to send back."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.calibration.gpu_report.options import GpuReportOptions
from medusa_trt.cli.arguments import FolderArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_stage_printer
from medusa_trt.errors import CalibrationError, require_extra

if TYPE_CHECKING:
    from medusa_trt.runtime.bundle import Bundle

EXIT_DIFFERENT = 1
"""The exit code where a stage failed, or something differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReportArguments(FolderArguments):
    """Build, compare and measure a bundle on this machine, and write one folder to send back.

    Stages that fail are recorded, and the next ones go on. Stages that this machine cannot run are
    recorded too. Engines and step times are written into the bundle, as by build and calibrate.

    Attributes:
        report: what is measured.
    """

    report: GpuReportOptions = field(default_factory=GpuReportOptions)


def report(arguments: GpuReportArguments) -> int:
    """Makes the report, or runs one stage of it.

    Returns:
        The exit code: 1 if a stage failed.
    """
    with require_extra("reporting", "export", "tensorrt", error_class=CalibrationError):
        from medusa_trt.calibration.gpu_report.report import (
            PAGE_FILE,
            choose_folder,
            make_report,
            pack_folder,
        )
        from medusa_trt.calibration.gpu_report.runners import require_polygraphy
    from medusa_trt.runtime.bundle import Bundle

    options = arguments.report
    if options.stage in (None, "graphs"):
        require_polygraphy()
    bundle = Bundle.open(arguments.bundle)
    folder = choose_folder(bundle, options)
    if options.stage is not None:
        return _run_stage(bundle, options, folder)
    result = make_report(bundle, options, folder, make_stage_printer())
    archive = pack_folder(folder)
    print((folder / PAGE_FILE).read_text("utf-8"))
    print(f"wrote {folder} and {archive}: send the archive back", file=sys.stderr)
    return 0 if result.is_good else EXIT_DIFFERENT


def _run_stage(bundle: "Bundle", options: GpuReportOptions, folder: Path) -> int:
    """Runs one stage in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    run = _compare_graphs if options.stage == "graphs" else _check_steps
    return 0 if run(bundle, folder) else EXIT_DIFFERENT


def _compare_graphs(bundle: "Bundle", folder: Path) -> bool:
    from medusa_trt.calibration.gpu_report.graph_comparison import compare_graphs
    from medusa_trt.calibration.gpu_report.report import write_graphs

    comparisons = []
    for comparison in compare_graphs(bundle, folder):
        comparisons.append(comparison)
        write_graphs(comparisons, folder)
        state = "agrees" if comparison.agrees else comparison.failure or "DIFFERS"
        print(f"{comparison.graph}: {comparison.reason or state}", flush=True)
    return all(comparison.agrees for comparison in comparisons)


def _check_steps(bundle: "Bundle", _: Path) -> bool:
    from medusa_trt.calibration.gpu_report.step_checks import check_reductions, check_trees
    from medusa_trt.runtime.session import MedusaSession

    with MedusaSession(bundle) as session:
        checks = [check(session) for check in (check_trees, check_reductions)]
    for check in checks:
        print(check.text)
    return all(check.agrees for check in checks)


VERBS = {"gpu-report": Verb(GpuReportArguments, report)}
