"""The draft vocabulary of the tiny model."""

from pathlib import Path

import draft_vocabulary
import pytest
from safetensors.torch import load_file


def test_the_most_frequent_tokens_become_the_token_map(
    tiny_model: Path,
    tiny_heads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "heads.safetensors"
    arguments = ["--model", tiny_model, "--heads", tiny_heads, "--output", output]
    numbers = ["--size", 20, "--num-prompts", 3, "--max-new-tokens", 4]
    monkeypatch.setattr("sys.argv", ["draft_vocabulary.py", *map(str, arguments + numbers)])
    assert draft_vocabulary.main() == 0
    token_map = load_file(output).pop("token_map").tolist()
    assert len(token_map) == 20 and token_map == sorted(set(token_map))
    assert "held out; share covered:" in capsys.readouterr().out
