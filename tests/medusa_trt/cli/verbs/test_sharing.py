"""`medusa-trt card` and `push`; tests/sharing has what they do."""

from pathlib import Path

import pytest

from medusa_trt.cli.main import main


def test_a_card_is_written_where_it_is_wanted(
    tiny_heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "CARD.md"
    words = ["card", str(tiny_heads), "--output", str(output), "--repository", "owner/heads"]
    assert main(words) == 0
    assert capsys.readouterr().err == f"wrote {output}\n"
    assert "--heads owner/heads" in output.read_text("utf-8")
    assert main(words) == 2
    assert "give --overwrite" in capsys.readouterr().err


def test_a_repository_has_an_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tmp_path), "name"]) == 2
    assert capsys.readouterr().err == "error: the repository is 'name': write OWNER/NAME\n"
