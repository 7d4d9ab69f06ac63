"""The backbone that a conversion writes beside the heads."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.checkpoints.gguf_files import write_gguf
from support.tiny_models import llama_config, random_model

from medusa_trt.export.head_conversion.backbone import Backbone
from medusa_trt.export.models.source import source_from_name


def test_public_generation_configs_are_no_hindrance(tiny_model: Path, tmp_path: Path) -> None:
    """transformers refuses to save a temperature without sampling, as Vicuna v1.5 has it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    stated = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [257, 7]}
    (model / "generation_config.json").write_text(json.dumps(stated))
    output = tmp_path / "saved"
    output.mkdir()
    Backbone(source_from_name(str(model)), "tiny").save(output)
    saved = json.loads((output / "generation_config.json").read_text())
    assert {key: saved.get(key) for key in stated} == stated


def test_a_gguf_backbone_is_saved_as_it_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_model(llama_config()), "Q4_0")
    backbone = Backbone(source_from_name(str(path)), "tiny")
    assert backbone.model.generation_config is not None
    backbone.model.generation_config.temperature = 0.5
    output = tmp_path / "saved"
    output.mkdir()
    backbone.save(output)
    assert json.loads((output / "generation_config.json").read_text())["temperature"] == 0.5
    stored = load_file(output / "model-backbone.safetensors")
    assert all(torch.equal(stored[key], t) for key, t in backbone.model.state_dict().items())
