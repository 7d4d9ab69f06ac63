"""`medusa-trt bench` as a user meets it: whole runs, mistakes, and what it writes."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.measurements.bench_rows import both

from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.cli.verbs import bench as cli_bench
from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import Bundle


def run(*words: str) -> int:
    """`medusa-trt bench` with these arguments."""
    return cli_bench.bench(cli_bench.VERBS["bench"].parse("medusa-trt bench", words))


def test_a_whole_run(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        '{"turns": ["hello", "more"], "category": "x"}\n{"prompt": "ho", "category": "y"}\n'
    )
    report_path, plot_path = tmp_path / "report.json", tmp_path / "plot.png"
    common = (str(tiny_bundle.path), "--prompts", str(prompts), "--max-new-tokens", "8")
    assert run(*common, "--threads", "1", "--json", str(report_path), "--plot", str(plot_path)) == 0
    out, err = capsys.readouterr()
    assert "typical Medusa" in out and "category" in out and "NO" not in out
    assert "18 replies, up to about" in err
    report = json.loads(report_path.read_text())
    assert len(report["rows"]) == 18 and report["is_complete"] is True
    assert [mode["same_tokens"] for mode in report["summary"]["modes"]] == [
        None,
        True,
        True,
        None,
        True,
        None,
    ]
    assert report["machine"]["cpu"] and report["machine"]["versions"]["numpy"]
    assert report["setup"]["threads"] == 1 and report["peak_memory_bytes"] > 1e6
    assert plot_path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "p.jsonl",
        "plot.png",
        "report.json",
    ]


def test_different_tokens_are_red_and_the_exit_code_is_1(
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoiled(*arguments: object) -> list[ReplyRow]:
        plain, medusa = both("1", 1, 1)
        return [plain, replace(medusa, token_ids=(9,) * 5)]

    monkeypatch.setattr("medusa_trt.calibration.bench.measurement.measure_replies", spoiled)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\n")
    arguments = (str(tiny_bundle.path), "--prompts", str(prompts), "--modes", "greedy")
    assert run(*arguments, "--max-new-tokens", "4") == cli_bench.EXIT_DIFFERENT
    out = capsys.readouterr().out
    assert "NO" in out and "greedy Medusa in prompt 1, turn 1, round 1" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reports_what_was_finished(
    number: signal.Signals,
    interruptible: None,
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: object) -> object:
        yield from both("1", 1, 1)
        yield both("2", 1, 1)[0]
        signal.raise_signal(number)

    monkeypatch.setattr("medusa_trt.calibration.bench.measurement.measure_replies", interrupted)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\nother\n")
    arguments = (str(tiny_bundle.path), "--prompts", str(prompts), "--modes", "greedy")
    assert run(*arguments, "--max-new-tokens", "4") == 128 + number
    assert "Interrupted before the end of 2 prompts, 1 round" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plot", "x.pdf"), "must end in .png, .svg, .html"),
        (("--json", "none/x.json"), "cannot write none/x.json .*No such file or directory"),
        (("--json", "/proc/x.json"), "cannot write /proc/x.json"),
        (("--plot", "/proc/x.png"), "cannot write /proc/x.png"),
        (("--json", "."), "it is a folder"),
        (("--prompts", "none.txt"), "cannot read none.txt: No such file"),
        (("--num-prompts", "0"), "num_prompts is 0"),
        (("--modes", "greedy,fast"), "--modes is 'greedy,fast': choose from greedy"),
        (("--seed", "-1"), "seed is -1"),
        (("--tree", "bush"), "unknown tree"),
        ((), "is not a bundle"),
    ],
)
def test_mistakes_end_before_the_bundle_is_opened(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(MedusaError, match=message):
        run("/nonexistent", *words)


def test_matplotlib_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MedusaError, match=r"medusa-trt\[bench\]"):
        run("/nonexistent", "--plot", "x.png")
