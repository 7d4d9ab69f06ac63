"""The comparison of bundles with their model on a tiny bundle."""

import json
from pathlib import Path

import pytest
import rounding

from medusa_trt.runtime.bundle import Bundle


def test_bundles_are_compared_with_their_model(
    tiny_bundle: Bundle,
    headless_bundle: Bundle,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rounding.json"
    options = ["--model", str(tiny_model), "--skip", "1", "--num-prompts", "2"]
    options += ["--max-new-tokens", "6", "--json", str(file)]
    bundles = [str(tiny_bundle.path), str(headless_bundle.path)]
    monkeypatch.setattr("sys.argv", ["rounding.py", *bundles, *options])
    assert rounding.main() == 0
    assert "same likeliest token at 100.0% of 12 positions" in capsys.readouterr().out
    rows = json.loads(file.read_bytes())
    assert len(rows) == 2
    for row in rows:
        assert row["agreement"]["num_positions"] == 12
        assert row["agreement"]["kl_divergence"] == pytest.approx(0, abs=1e-6)


def test_too_few_prompts_are_one_line(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_bundle.path), "--prompts", "mt-bench", "--skip", "70"]
    monkeypatch.setattr("sys.argv", ["rounding.py", *arguments])
    assert rounding.main() == 2
    assert capsys.readouterr().err.startswith("error: mt-bench has too few prompts for 70")
