"""Loading the backbone."""

import importlib.util
from pathlib import Path

import pytest
from support.checkpoints.multimodal_families import FAMILIES

from medusa_trt.errors import TrainingError
from medusa_trt.training.backbone import load_backbone


def test_quantization_without_its_library_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install 'medusa-trt\[train-quantized\]'"):
        load_backbone(str(tiny_model), quantization="4bit")


def test_a_text_part_is_not_quantized(tmp_path: Path) -> None:
    FAMILIES["llava"].save_pretrained(tmp_path / "model")
    with pytest.raises(TrainingError, match="model is a llava model, whose text part cannot be"):
        load_backbone(str(tmp_path / "model"), quantization="4bit")
