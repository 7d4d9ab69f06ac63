"""What a shell completes, tried in bash and zsh themselves."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.terminal.command_line import refusal, run

from medusa_trt.cli.verb_table import HELP

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _medusa_trt; echo "${COMPREPLY[*]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, out, _ = run(capsys, "completion", "bash")
    assert code == 0
    (tmp_path / "completion.sh").write_text(out)
    return tmp_path / "completion.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("medusa-trt gen", "generate"),
        ("medusa-trt ", " ".join(sorted({name.split()[0] for name in HELP}))),
        ("medusa-trt calibrate ", "heads latency tree threshold quantization"),
        ("medusa-trt calibrate tree B --dry", "--dry-run"),
        ("medusa-trt generate B --acceptance ", "greedy typical sample"),
        ("medusa-trt generate B hi --json --se", "--seed"),
        ("/usr/bin/medusa-trt export --target tensorrt-", "tensorrt-rtx tensorrt-jetson"),
        ("medusa-export --prec", "--precision"),
        ("medusa-export --precision fp", "fp32 fp16 fp8"),
        ("medusa-trt generate ", ""),
        ("medusa-trt generate B --batch ", ""),
        ("medusa-trt nothing --", ""),
    ],
)
def test_words_are_completed(line: str, completed: str, script: Path) -> None:
    words = ["bash", "-c", TRY, "bash", str(script), *line.split(" ")]
    shown = subprocess.run(words, capture_output=True, text=True, check=True)
    assert shown.stdout == completed + "\n" and shown.stderr == ""


def test_zsh_takes_the_same_words(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "completion", "zsh")
    assert out.endswith("bashcompinit\n" + script.read_text())
    assert "choose from bash, zsh" in refusal(capsys, "completion", "fish")


TRY_ZSH = """
source "$1"; shift; print $+functions[compdef] $_comps[medusa-trt]
emulate sh; COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _medusa_trt; echo "${COMPREPLY[*]}"
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_a_zsh_without_settings_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "completion", "zsh")
    (tmp_path / "completion.zsh").write_text(out)
    words = ["zsh", "-f", "-c", TRY_ZSH, "zsh", str(tmp_path / "completion.zsh")]
    words += ["medusa-trt", "generate", "B", "--acceptance", "t"]
    environment = os.environ | {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path)}
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    first, second = shown.stdout.splitlines()
    assert first.startswith("1 _bash_complete") and "_medusa_trt" in first
    assert "typical" in second.split() and shown.stderr == ""
