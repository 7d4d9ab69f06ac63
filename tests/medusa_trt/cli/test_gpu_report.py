"""`medusa-trt gpu-report` on the CPU, where it runs all stages but the build."""

import json
import sys
from pathlib import Path

import pytest

from medusa_trt.cli.main import main
from medusa_trt.runtime.bundle import Bundle


def test_one_stage_alone(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu-report", str(tiny_bundle.path), "--stage", "steps", "--output", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "tree against text" in out and "draws are equal" in out


def test_a_missing_polygraphy_is_said_before_anything_is_done(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    folder = tmp_path / "report"
    assert main(["gpu-report", str(tiny_bundle.path), "--output", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: comparing graphs needs polygraphy: pip install 'medusa-trt")
    assert not folder.exists() and error.count("\n") == 1


@pytest.mark.slow
def test_a_whole_report(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: the extra gpu-report")
    folder = tmp_path / "report"
    words = ["gpu-report", str(bundle), "--output", str(folder), "--num-prompts", "1"]
    words += ["--max-new-tokens", "8", "--sizes", "1,4", "--contexts", "16", "--rounds", "1"]
    assert main(words) == 0
    report = json.loads((folder / "report.json").read_bytes())
    statuses = {stage["name"]: stage["status"] for stage in report["stages"]}
    assert statuses.pop("build") == "not run" and set(statuses.values()) == {"done"}
    assert [graph["graph"] for graph in report["graphs"]] == ["verify", "heads", "reduce"]
    assert report["latency"]["points"] and len(report["bandwidth"]) == 2
    assert (tmp_path / "report.tar.gz").is_file()
    assert (
        "| build | not run | 0 | the target ort-cpu needs no engines |" in capsys.readouterr().out
    )
