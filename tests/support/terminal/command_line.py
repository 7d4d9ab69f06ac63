"""Calls of the command line, as a test makes them."""

import json
from typing import Any

import pytest

from medusa_trt.cli import main as cli


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a call that must fail."""
    code, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert code == 2 and out == "" and len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


def generate(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The output of `medusa-trt generate`, which must not fail."""
    code, out, err = run(capsys, "generate", *words)
    assert code == 0, err
    return out


def read_results(out: str) -> list[dict[str, Any]]:
    """The objects of an output of JSON lines."""
    return [json.loads(line) for line in out.split("\n")[:-1]]
