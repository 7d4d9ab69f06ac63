"""`medusa-trt doctor` as a user meets it."""

import pytest

from medusa_trt.cli.verbs.doctor import DoctorArguments, diagnose
from medusa_trt.runtime.engines.device.memory import read_compute_capability


def test_doctor_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    diagnose(DoctorArguments())
    shown = capsys.readouterr().out
    states = {line[:33].rstrip(): line[34:] for line in shown.split("\n\n")[1].splitlines()}
    assert states["export models"] == states["train heads, merge adapters"] == "yes"
    if read_compute_capability() is None:
        gpu = states["run TensorRT-RTX engines"]
        assert gpu == "no: CUDA finds no NVIDIA GPU here" or gpu.startswith("no: pip install")
    assert all(word in shown for word in ("Python", "memory", "operators"))
