"""Loading the backbone."""

import importlib.util
from pathlib import Path

import pytest

from medusa_trt.errors import TrainingError
from medusa_trt.training.backbone import load_backbone


def test_quantization_without_its_library_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install 'medusa-trt\[train-quantized\]'"):
        load_backbone(str(tiny_model), quantization="4bit")
