"""The commands of the tutorial run in their order, as they are written."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text("utf-8")
COMMANDS = [line[2:] for line in re.findall(r"^\$ .*$", PAGE, re.MULTILINE)]
ENDING = "medusa-trt serve"
"""This one goes on until it is interrupted; tests/serving/ has its tests."""


def run_command(command: str, folder: Path) -> str:
    """Runs a command of the package in a folder; returns its output."""
    name, *words = shlex.split(command)
    path = Path(sys.executable).parent / name
    ended = subprocess.run([path, *words], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, (command, ended.stderr)
    return ended.stdout


def test_the_tutorial_has_its_steps() -> None:
    verbs = [" ".join(command.split()[:3]) for command in COMMANDS]
    assert verbs.index("medusa-trt train data") < verbs.index("medusa-trt train heads")
    assert any(command.startswith(ENDING) for command in COMMANDS)


@pytest.mark.slow
def test_the_commands_run(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "my-model")
    for command in COMMANDS:
        if command.startswith("medusa-") and not command.startswith(ENDING):
            run_command(command, tmp_path)
    assert (tmp_path / "my-bundle/heads.onnx").exists()


@pytest.mark.slow
def test_the_demo_model_becomes_the_folder_that_the_page_lists(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/save_demo_model.py"), "my-model"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    listed = PAGE.split("$ ls my-model\n")[1].splitlines()[0].split()
    assert sorted(path.name for path in (tmp_path / "my-model").iterdir()) == listed
