"""The help of every benchmark script, and its errors."""

import importlib
from itertools import pairwise
from pathlib import Path

import pytest
from script import (
    check_output,
    check_threads,
    make_parser,
    name_busy_machine,
    report_errors,
    write_json,
)

from medusa_trt.calibration.noise import CoreWatch
from medusa_trt.errors import MedusaError

FOLDER = Path(make_parser.__code__.co_filename).parent
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "script")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", "-h"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(name).main()
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in text
    for line, next_line in pairwise(text.splitlines()):
        if line.startswith("  -"):
            # argparse puts the help of a long option on the next line.
            assert "  " in line.strip() or next_line.startswith(" " * 20), f"no help: {line}"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @report_errors
    def main() -> int:
        raise MedusaError("it failed")

    assert main() == 2
    assert capsys.readouterr().err == "error: it failed\n"


def test_output_and_threads_are_checked_before_the_work(tmp_path: Path) -> None:
    check_threads([1])
    with pytest.raises(MedusaError, match="--threads is 0: this process may use 1 to"):
        check_threads([1, 0])
    file = tmp_path / "report.json"
    check_output(None)
    check_output(file)
    with pytest.raises(MedusaError, match="No such file or directory"):
        check_output(tmp_path / "missing" / "report.json")
    write_json(None, 1)
    write_json(file, {"tokens": 3})
    assert file.read_text() == '{\n "tokens": 3\n}'


@pytest.mark.parametrize(("free_cores", "is_busy"), [(0.3, True), (1.0, False), (None, False)])
def test_a_busy_machine_is_named(
    free_cores: float | None,
    is_busy: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(CoreWatch, "count_free_cores", lambda _: free_cores)
    with name_busy_machine(1):
        pass
    assert ("machine was busy" in capsys.readouterr().err) == is_busy
