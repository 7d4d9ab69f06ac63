"""A tiny model in a folder whose tensors and config differ from what was saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.tiny_models import llama_config, random_model, save_tiny_model

Tensors = dict[str, torch.Tensor]


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
