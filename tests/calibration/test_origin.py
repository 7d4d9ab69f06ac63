"""Where a section of the report comes from."""

import sys

import pytest

from medusa_trt.calibration.origin import Origin
from medusa_trt.runtime.engines.machine import Machine


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/medusa-trt", "bench", "my bundle"])
    origin = Origin.from_command(Machine.detect(), duration_s=1.23456, is_complete=True)
    assert origin.command == "medusa-trt bench 'my bundle'"
    assert origin.duration_s == 1.235 and origin.date.count(":") >= 2
