"""`medusa-trt build`, as far as it goes without TensorRT."""

import pytest
from support.terminal.command_line import refusal

from medusa_trt.cli.verbs.build import VERBS
from medusa_trt.runtime.bundle import Bundle


def test_another_target_and_a_level_that_does_not_exist_are_refused(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "build", tiny_bundle.path)
    assert "ort-cpu" in line or "pip install" in line
    line = refusal(capsys, "build", tiny_bundle.path, "--optimization-level", 9)
    assert "--optimization-level is 9: it must be between 0 and 5" in line


def test_options_are_read() -> None:
    words = ["folder", "--max-batch-size", "4", "--target", "tensorrt-rtx"]
    arguments = VERBS["build"].parse("medusa-trt build", words)
    assert arguments.bundle.name == "folder" and arguments.engines.max_batch_size == 4
