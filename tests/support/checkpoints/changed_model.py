"""A tiny model in a folder whose tensors and config differ from what was saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.export.models.base_model import open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.streamed_model import supply_weights

Tensors = dict[str, torch.Tensor]
QUERY = "model.layers.0.self_attn.q_proj"
TOKENS = torch.arange(40)[None] * 7


def changed_model(folder: Path, change: Callable[[Tensors], None], **config: Any) -> Path:
    """A tiny model whose tensors and config are changed after it was saved."""
    save_tiny_model(folder)
    tensors = {
        name: each.clone() for name, each in random_model(llama_config()).state_dict().items()
    }
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | config))
    return folder


def compute_logits(folder: Path) -> torch.Tensor:
    """Opens a model without its weights, and computes its logits of `TOKENS`."""
    base = open_base_model(source_from_name(str(folder)))
    with torch.no_grad(), supply_weights(base.model, base.weights):
        logits: torch.Tensor = base.model(TOKENS).logits
    return logits


def in_eight_bits(dtype: torch.dtype, limit: float) -> Callable[[Tensors], None]:
    """Layers' matrices as codes with one scale each."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "_proj." in name]:
            scale = tensors[name].abs().max() / limit
            tensors[name] = (tensors[name] / scale).to(dtype)
            tensors[f"{name}_scale"] = scale.reshape(1)

    return change
