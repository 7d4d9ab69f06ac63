"""Templates of deployed files."""

import shlex
import subprocess
from pathlib import Path

import jinja2
import pytest

from medusa_trt.export.deploy.templates import render_template

VALUES = {"target": "tensorrt", "model_name": "medusa"}


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A template of a loop and a quoted value, in place of those that are shipped."""
    loop = "{% for name in names %}\necho {{ name | quote }}\n{% endfor %}\n# {{ end }}\n"
    (tmp_path / "loop.sh.jinja").write_text(loop)
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)


@pytest.mark.usefixtures("template")
def test_values_are_quoted_for_the_shell_and_loops_leave_no_lines() -> None:
    names = ["plain", "two words", "$(rm -rf x)", "it's"]
    text = render_template("loop.sh", {"names": names, "end": "done"})
    expected = [*(f"echo {shlex.quote(name)}" for name in names), "# done", ""]
    assert text.split("\n") == expected
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == names


@pytest.mark.usefixtures("template")
def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'end' is undefined"):
        render_template("loop.sh", {"names": []})


def test_a_template_is_found_beside_the_module() -> None:
    text = render_template("triton_config.pbtxt", VALUES)
    assert 'name: "medusa"' in text and "{{" not in text
    with pytest.raises(FileNotFoundError):
        render_template("triton_config", VALUES)
