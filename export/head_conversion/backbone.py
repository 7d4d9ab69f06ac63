"""The backbone that a conversion needs: its vocabulary, its unembedding or all of it."""

import json
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from medusa_trt.export.models.base_model import load_model, save_model
from medusa_trt.export.models.source import ModelSource, load_config
from medusa_trt.export.models.tokenizers import load_tokenizer

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_BACKBONE_FILE = "model-backbone.safetensors"


class Backbone:
    """A backbone of which only what is asked for is loaded, in the types of its files."""

    def __init__(self, source: ModelSource, name: str) -> None:
        """Takes its place, and its name for a config's `base_model_name_or_path`; loads nothing."""
        self.source = source
        self.name = name

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its config; an adapter may have changed the size of the vocabulary."""
        return load_config(self.source) if self.source.adapter is None else self.model.config

    @cached_property
    def model(self) -> PreTrainedModel:
        """The whole backbone, with its adapter merged."""
        return load_model(self.source, "auto")

    def read_unembedding(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Reads the unembedding (vocab, hidden) as float32, and what it adds to the logits."""
        module = self.model.get_output_embeddings()
        bias = getattr(module, "bias", None)
        weight: torch.Tensor = module.weight.detach().float()
        return weight, None if bias is None else bias.detach().float()

    def save(self, folder: Path) -> dict[str, str]:
        """Writes the whole model with its tokenizer in Hugging Face layout.

        Returns:
            The file of each tensor; none is called `model.safetensors`, so that readers follow
            the index that is to be written beside them.
        """
        save_model(self.model, folder)
        tokenizer, _ = load_tokenizer(self.source)
        tokenizer.save_pretrained(folder)
        index = folder / _INDEX_FILE
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            return weight_map
        (folder / _SINGLE_FILE).rename(folder / _BACKBONE_FILE)
        with safe_open(folder / _BACKBONE_FILE, "pt") as file:
            return dict.fromkeys(file.keys(), _BACKBONE_FILE)
