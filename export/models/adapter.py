"""PEFT adapters: what they do to the backbone is merged into its weights."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.heads.key_layouts import recognize
from medusa_trt.export.heads.loading import ADAPTER_CONFIG
from medusa_trt.export.weights.checkpoint_files import json_from_file, open_checkpoint
from medusa_trt.files import join_names

_HEADS_MODULES = ("medusa_head", "medusa_heads")


def base_model_from_adapter(folder: Path) -> str:
    """The backbone that an adapter was trained on, as its config names it.

    Raises:
        ExportError: the config does not say.
        HeadsError: the config is no JSON object.
    """
    name = json_from_file(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ExportError(
            f"{folder / ADAPTER_CONFIG} does not name its base model: give the model with --model "
            "and the adapter with --heads"
        )
    return name


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with an adapter's LoRA weights merged into its own; the heads stay out of it.

    Args:
        model: the backbone; it is changed.
        folder: of the adapter.

    Raises:
        ExportError: peft is not installed, or the adapter is of a kind that cannot be merged.
        HeadsError: the adapter does not fit the model.
    """
    checkpoint = open_checkpoint(folder)
    others = recognize(checkpoint.files, str(checkpoint.path)).others
    if not others:
        return model
    try:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise ExportError(
            f"merging an adapter needs {error.name}: pip install 'medusa-trt[train]'"
        ) from error
    config = PeftConfig.from_pretrained(str(folder))
    saved = getattr(config, "modules_to_save", None) or []
    config.modules_to_save = [name for name in saved if name not in _HEADS_MODULES] or None
    try:
        adapted = get_peft_model(model, config)
        result: Any = set_peft_model_state_dict(adapted, checkpoint.load(others))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise HeadsError(
            f"the adapter in {folder} does not fit the model: {reason[:200]}"
        ) from error
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    for kind, keys in (("has", result.unexpected_keys), ("lacks", missing)):
        if keys:
            raise HeadsError(f"the adapter in {folder} does not fit: it {kind} {join_names(keys)}")
    if not hasattr(adapted, "merge_and_unload"):
        raise ExportError(f"{folder} is a {config.peft_type} adapter: only LoRA can be merged")
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged
