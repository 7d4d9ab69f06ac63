"""`benchmarks/gpu_check.py` where it can run: on the CPU."""

from pathlib import Path

import gpu_check
import pytest

from medusa_trt.runtime.bundle import Bundle


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["gpu_check.py", *map(str, arguments)])
    return gpu_check.main()


def test_all_parts_run(
    tiny_bundle: Bundle,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tiny_bundle.manifest.model.max_length + 64
    context = rows - 100
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--tokens", 12, "--rounds", 2, "--contexts", context, rows, "--bandwidth", 20]
    arguments = [tiny_bundle.path, *options, "--transformers", tiny_model]
    assert run(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "recorded steps repeat the first one: yes" in out
    assert out.count("12 of 12") == 3 * len(gpu_check.PROMPTS)
    assert f"context {context} is left out from 128 nodes on" in out
    assert f"context {rows} is left out from 1 nodes on" in out
    assert "96" in out and "transformers on cpu in float32, static cache" in out


def test_accepted_lengths_of_the_heads_are_theirs_alone() -> None:
    plain, heads, both = gpu_check.make_ways(16).values()
    assert plain.tree is not None and plain.tree.num_nodes == 1
    assert heads.tree is None and heads.lookup_ngram == 0
    assert both.lookup_ngram > 0


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")
