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
    assert "fastest first" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(file.read_bytes())}
    assert rows.keys() == {"greedy plain", "grown at each step", "chain-2"}
    assert rows.pop("greedy plain")["speedup"] is None
    assert all(row["same_tokens"] for row in rows.values())
    speedups = [row["speedup"]["median"] for row in rows.values()]
    assert speedups == sorted(speedups, reverse=True)
