"""`medusa-trt verify` as a user meets it."""

from pathlib import Path

import pytest
from support.terminal.command_line import refusal
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.cli.main import main
from medusa_trt.cli.verbs.verify import VERBS
from medusa_trt.runtime.bundle import Bundle


def test_the_model_must_be_named() -> None:
    assert VERBS["verify"].make_parser("verify").usage == "verify BUNDLE --against MODEL [options]"


def test_a_model_of_another_shape_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", llama_config(num_hidden_layers=3))
    capsys.readouterr()
    message = refusal(capsys, "verify", tiny_bundle.path, "--against", other)
    assert "has 2 layers, " in message and " has 3: give the model" in message


def test_verify_compares_with_the_model(
    tiny_bundle: Bundle, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tiny_bundle.path), "--against", str(tiny_model)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["text", "tree", "batch"]
    assert all("argmax equal at 100.0%" in line for line in shown)


def test_verify_refuses_another_model_of_the_same_shape(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert main(["verify", str(tiny_bundle.path), "--against", str(other)]) == 2
    assert "logits differ from the model's" in capsys.readouterr().err
