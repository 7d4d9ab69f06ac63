"""`benchmarks/gpu_check.py` where it can run: on the CPU."""

from pathlib import Path

import gpu_check
import pytest

from medusa_trt.runtime.bundle import Bundle


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["gpu_check.py", *map(str, arguments)])
    return gpu_check.main()


def test_device_and_host_agree(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, tiny_bundle.path) == 0
    out = capsys.readouterr().out
    assert "recorded steps repeat the first one: yes" in out
    assert "draws are equal" in out


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")
