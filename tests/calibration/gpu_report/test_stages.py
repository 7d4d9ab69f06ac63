"""The stages: what runs here, and what a failure does."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from medusa_trt.calibration.gpu_report import stages
from medusa_trt.calibration.gpu_report.options import GpuReportOptions
from medusa_trt.calibration.gpu_report.stages import Stage, list_stages, run_stages
from medusa_trt.cli.verb_table import HELP, verb_from_name
from medusa_trt.runtime.bundle import Bundle


def test_a_bundle_for_the_cpu_runs_all_but_the_build(tiny_bundle: Bundle, tmp_path: Path) -> None:
    listed = list_stages(tiny_bundle, GpuReportOptions(), tmp_path)
    reasons = {stage.name: stage.reason for stage in listed if stage.reason}
    assert reasons == {"build": "the target ort-cpu needs no engines"}


def test_every_command_is_one_of_ours(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for stage in list_stages(tiny_bundle, GpuReportOptions(rebuild=True), tmp_path):
        words = list(stage.words)
        num = 2 if " ".join(words[:2]) in HELP else 1
        verb_from_name(" ".join(words[:num])).parse("medusa-trt", words[num:])


def test_a_gpu_that_is_missing_is_said(
    trt_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "read_compute_capability", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    listed = list_stages(trt_bundle, GpuReportOptions(), tmp_path)
    assert {stage.name for stage in listed if stage.reason is None} == {"machine", "bundle"}
    assert {stage.reason for stage in listed} == {None, "no CUDA device"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = stages.find_reason(trt_bundle)
    assert reason == "tensorrt is not installed: pip install 'medusa-trt[tensorrt]'"


def test_engines_are_built_again_only_if_asked(
    trt_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "find_reason", lambda _: None)
    monkeypatch.setattr(stages, "list_engine_folders", lambda _: [Path("engines/tensorrt-sm86")])
    kept, again = (
        list_stages(trt_bundle, GpuReportOptions(rebuild=rebuild), tmp_path)[2]
        for rebuild in (False, True)
    )
    assert kept.reason is not None and "tensorrt-sm86" in kept.reason
    assert again.reason is None and "--overwrite" in again.words


def test_a_failure_is_recorded_and_the_next_stage_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    results = list(
        run_stages(
            [
                Stage(name="build", words=("nowhere",)),
                Stage(name="graphs", words=(), reason="no CUDA device"),
                Stage(name="machine", words=("--version",)),
            ],
            tmp_path,
            1.0,
            told.append,
        )
    )
    assert [result.status for result in results] == ["failed", "not run", "done"]
    assert results[0].reason.startswith("exit code 2: error: there is no verb 'nowhere'")
    assert results[1].reason == "no CUDA device"
    assert "medusa-trt" in (tmp_path / "logs/machine.log").read_text()
    assert any("graphs: not run: no CUDA device" in line for line in told)


def test_crashes_and_endless_stages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(name="bench", words=("bench",))
    outcomes: list[Any] = [-11, None]

    def run(command: Any, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        code = outcomes.pop(0)
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr("subprocess.run", run)
    crashed, endless = run_stages([stage, stage], tmp_path, 0.5, lambda _: None)
    assert crashed.reason == "ended by SIGSEGV"
    assert endless.reason == "it took longer than 0.5 minutes (--stage-minutes)"
