"""The tutorial has its steps, and its example makes the folder that it lists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text("utf-8")
COMMANDS = [line[2:] for line in re.findall(r"^\$ .*$", PAGE, re.MULTILINE)]


def test_the_tutorial_has_its_steps() -> None:
    verbs = [" ".join(command.split()[:3]) for command in COMMANDS]
    assert verbs.index("medusa-trt train data") < verbs.index("medusa-trt train heads")
    assert any(command.startswith("medusa-trt serve") for command in COMMANDS)


@pytest.mark.slow
def test_the_demo_model_becomes_the_folder_that_the_page_lists(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/save_demo_model.py"), "my-model"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    listed = PAGE.split("$ ls my-model\n")[1].splitlines()[0].split()
    assert sorted(path.name for path in (tmp_path / "my-model").iterdir()) == listed
