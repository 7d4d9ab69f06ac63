"""The page of the report, and its folder."""

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from medusa_trt.calibration.gpu_report import report as module
from medusa_trt.calibration.gpu_report.graph_comparison import GraphComparison, TensorError
from medusa_trt.calibration.gpu_report.options import GpuReportOptions
from medusa_trt.calibration.gpu_report.report import (
    Report,
    choose_folder,
    make_report,
    pack_folder,
    write_graphs,
)
from medusa_trt.calibration.gpu_report.stages import Stage, StageResult
from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.options import LatencyOptions
from medusa_trt.calibration.origin import Origin
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.machine import Machine

COMPARISONS = [
    GraphComparison(graph="verify", reason="numpy has no bfloat16"),
    GraphComparison(
        graph="heads",
        tested="tensorrt",
        outputs=(TensorError(name="draft_logprobs", error=0.5, agrees=False),),
        layers=(TensorError(name="inner", error=0.7, agrees=False),),
        num_layers=9,
        commands=("polygraphy run BUNDLE/heads.onnx",),
    ),
    GraphComparison(graph="reduce", tested="tensorrt", failure="no kernel"),
]


def make_section() -> LatencySection:
    record = LatencyRecord(
        machine="m",
        threads=None,
        batch_size=1,
        context=16,
        num_nodes=4,
        round=1,
        num_steps=5,
        step_ms=2.0,
        engine_ms=1.5,
    )
    origin = Origin.from_command(Machine.detect(), duration_s=1.0, is_complete=True)
    return LatencySection.from_records([record], None, LatencyOptions(), origin)


def test_the_report_says_what_was_found_and_what_was_not_run(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(stages: Iterable[Stage], folder: Path, *_: Any) -> list[StageResult]:
        write_graphs(COMPARISONS, folder)
        (folder / "logs").mkdir()
        (folder / "logs/steps.log").write_text("tree against text: 0.0001\n")
        return [
            StageResult(name="build", status="not run", reason="no CUDA device"),
            StageResult(name="graphs", status="failed", reason="exit code 1: a | b"),
            StageResult(name="latency", status="done", duration_s=3.0),
        ]

    monkeypatch.setattr(module, "run_stages", run)
    monkeypatch.setattr(module, "_read_latency", lambda _: make_section())
    folder = tmp_path / "report"
    report = make_report(tiny_bundle, GpuReportOptions(gpu="l4"), folder, print)
    assert not report.is_good
    page = (folder / "report.md").read_text("utf-8")
    for line in (
        "| build | not run | 0 | no CUDA device |",
        "| graphs | failed | 0 | exit code 1: a \\| b |",
        "| verify | not compared: numpy has no bfloat16 | | | |",
        "| heads | tensorrt | draft_logprobs | 5.0e-01 | **differs** |",
        "- `inner` 7.0e-01",
        "polygraphy run BUNDLE/heads.onnx",
        "it did not run: no kernel",
        "tree against text: 0.0001",
    ):
        assert line in page.splitlines(), line
    assert "| 16 | 4 | 2.000 | 1.500 |  | " in page and "%" in page
    stored = msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)
    assert stored.graphs == tuple(COMPARISONS) and stored.stages == report.stages
    with tarfile.open(pack_folder(folder)) as archive:
        assert {"report/report.md", "report/logs/steps.log"} <= set(archive.getnames())


def test_a_folder_that_exists_is_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = GpuReportOptions(output=tmp_path)
    with pytest.raises(CalibrationError, match=r"exists: give another --output"):
        choose_folder(tiny_bundle, options)
    alone = GpuReportOptions(output=tmp_path, stage="graphs")
    assert choose_folder(tiny_bundle, alone) == tmp_path
    assert choose_folder(tiny_bundle, GpuReportOptions()).name.startswith("gpu-report-")
