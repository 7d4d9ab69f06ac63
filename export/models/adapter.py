"""PEFT adapters: what they do to the backbone is merged into its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError, describe_error, require_extra
from medusa_trt.export.heads.key_layouts import recognize
from medusa_trt.export.heads.loading import ADAPTER_CONFIG
from medusa_trt.export.weights.checkpoint_files import json_from_file, open_checkpoint
from medusa_trt.export.weights.tied_weights import (
    get_embeddings,
    tie_equal_embeddings,
    untie_embeddings,
)
from medusa_trt.files import join_names

_PREFIX = "base_model.model."
_STORED_TWICE = (".modules_to_save.", ".trainable_tokens_delta")
"""Parts of the names under which PEFT stores the tensors of embeddings once more."""

_HEADS_MODULES = ("medusa_head", "medusa_heads")


def base_model_from_adapter(folder: Path) -> str:
    """Reads the name of the backbone that an adapter was trained on.

    Raises:
        ExportError: the config does not say.
        HeadsError: the config is not a JSON object.
    """
    name = json_from_file(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ExportError(
            f"{folder / ADAPTER_CONFIG} does not name its base model: give the model with --model "
            "and the adapter with --heads"
        )
    return name


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merges the LoRA weights in an adapter's folder into a model; the heads stay out of it.

    Raises:
        ExportError: peft is not installed, or the adapter is of a kind that cannot be merged.
        HeadsError: the adapter does not fit the model.
    """
    checkpoint = open_checkpoint(folder)
    others = recognize(checkpoint.files, str(checkpoint.path)).others
    if not others:
        return model
    with require_extra("merging an adapter", "train", error_class=ExportError):
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    config = PeftConfig.from_pretrained(str(folder))
    saved = getattr(config, "modules_to_save", None) or []
    config.modules_to_save = [name for name in saved if name not in _HEADS_MODULES] or None
    stored = checkpoint.load(key for key in others if ".original_module." not in key)
    _resize_vocabulary(model, stored, folder)
    if model.config.tie_word_embeddings:
        # PEFT would merge what belongs to one of two tied layers into both.
        untie_embeddings(model)
    try:
        adapted = get_peft_model(model, config)
        result: Any = set_peft_model_state_dict(adapted, stored)
    except (RuntimeError, ValueError, KeyError) as error:
        raise HeadsError(
            f"the adapter in {folder} does not fit the model: {describe_error(error)}"
        ) from error
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    unused = _list_unused(stored, result.unexpected_keys)
    for kind, keys in (("has", unused), ("lacks", missing)):
        if keys:
            raise HeadsError(f"the adapter in {folder} does not fit: it {kind} {join_names(keys)}")
    if not hasattr(adapted, "merge_and_unload"):
        raise ExportError(f"{folder} is a {config.peft_type} adapter: only LoRA can be merged")
    merged: PreTrainedModel = adapted.merge_and_unload()
    tie_equal_embeddings(merged)
    return merged


def _list_unused(stored: Mapping[str, torch.Tensor], unexpected: Sequence[str]) -> list[str]:
    """Names the tensors that PEFT did not use, without further copies of those that it used."""
    used = [tensor for key, tensor in stored.items() if key not in unexpected]
    return [
        key
        for key in unexpected
        if not any(part in key for part in _STORED_TWICE)
        or not any(torch.equal(stored[key], tensor) for tensor in used)
    ]


def _resize_vocabulary(
    model: PreTrainedModel, stored: Mapping[str, torch.Tensor], folder: Path
) -> None:
    """Gives a model the vocabulary of an adapter that was trained with another number of tokens.

    PEFT then stores the embedding and the unembedding whole, and of tied ones at least one.

    Raises:
        HeadsError: one is not stored, so nothing tells its rows.
    """
    embedding, unembedding = get_embeddings(model)
    whole: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for wrapper in ("", "base_layer.", "token_adapter.base_layer."):
                if (key := f"{_PREFIX}{name}.{wrapper}weight") in stored:
                    whole[name] = stored[key]
    sizes = {len(weight) for weight in whole.values()}
    if not sizes or sizes == {len(embedding)}:
        return
    is_tied = unembedding is embedding
    if len(sizes) > 1 or len(whole) < (1 if is_tied else 2):
        raise HeadsError(
            f"the adapter in {folder} has {' or '.join(map(str, sorted(sizes)))} tokens and the "
            f"model {len(embedding)}, but only {join_names(whole)} is stored for all of "
            "them: save the embedding and the unembedding with the adapter"
        )
    model.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    if is_tied:
        with torch.no_grad():
            get_embeddings(model)[0].copy_(next(iter(whole.values())))
