"""The comparison of trees on a tiny bundle."""

import json
from pathlib import Path

import pytest
import trees

from medusa_trt.runtime.bundle import Bundle


def test_trees_are_compared_with_plain_decoding(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "trees.json"
    options = ["--num-prompts", "2", "--max-new-tokens", "6", "--tree", "chain-2"]
    arguments = [str(tiny_bundle.path), *options, "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["trees.py", *arguments])
    assert trees.main() == 0
    assert "0 replies differ" in capsys.readouterr().out
    rows = json.loads(file.read_bytes())
    nodes = {row["tree"]: row["nodes"] for row in rows}
    assert nodes.pop("grown at each step") >= 1
    assert nodes == {"plain": 1, "chain-2": 3}
    assert rows == sorted(rows, key=lambda row: -row["over_plain"])
    assert all(row["low"] <= row["over_plain"] <= row["high"] for row in rows)
