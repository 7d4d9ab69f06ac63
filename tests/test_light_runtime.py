"""A machine that only decodes needs neither torch nor transformers nor onnx."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from medusa_trt.runtime.bundle import Bundle

BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "gguf",
    "llguidance",
)

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
from medusa_trt.cli.main import main
code = main(["generate", {bundle!r}, "hello", "--max-new-tokens", "8"])
loaded = {blocked} & {{name.split(".")[0] for name in sys.modules}}
sys.exit(code or (f"loaded {{loaded}}" if loaded else 0))
"""


def test_generation_works_with_the_export_libraries_blocked(tiny_bundle: Bundle) -> None:
    script = SCRIPT.format(blocked=set(BLOCKED), bundle=str(tiny_bundle.path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "tokens/s" in run.stderr


def test_the_runtime_install_requires_no_export_library() -> None:
    base = [line for line in requires("medusa-trt") or [] if "extra ==" not in line]
    names = {line.split(">")[0].split("=")[0].split("[")[0].strip().lower() for line in base}
    assert names == {"numpy", "tokenizers", "jinja2", "msgspec", "rich"}


def test_the_readmes_example_runs(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(example.replace('"smollm2-135m"', repr(str(tiny_bundle.path))), {})
    assert len(capsys.readouterr().out) > 50
