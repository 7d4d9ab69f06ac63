"""Tiny models with random weights that read images besides text."""

from pathlib import Path
from typing import Any

import torch
from support.tiny_models import EOS_ID, HIDDEN_SIZE, VOCAB_SIZE, make_byte_tokenizer
from transformers import AutoConfig, AutoModelForMultimodalLM, PretrainedConfig, PreTrainedModel

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "initializer_range": 0.2,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CLIP = {"model_type": "clip_vision_model"}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A tiny model of a family; `text_config` and `vision_config` are changes of their values."""
    text = TEXT | changes.pop("text_config", {})
    vision = VISION | changes.pop("vision_config", {})
    ends = [EOS_ID, 106] if model_type == "gemma3" else EOS_ID
    return AutoConfig.for_model(
        model_type, text_config=text, vision_config=vision, eos_token_id=ends, **changes
    )


FAMILIES = {
    "llava": config(
        "llava",
        text_config={"model_type": "llama"},
        vision_config=CLIP,
        image_token_index=290,
    ),
    "gemma3": config(
        "gemma3",
        text_config={
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 24,
        },
        image_token_index=290,
        mm_tokens_per_image=1,
    ),
    "mistral3": config(
        "mistral3",
        text_config={"model_type": "mistral", "sliding_window": None},
        vision_config={"model_type": "pixtral"},
        image_token_index=290,
    ),
    "qwen2_vl": config(
        "qwen2_vl",
        text_config={"rope_parameters": MROPE},
        vision_config=QWEN_VISION | {"embed_dim": 32, "hidden_size": HIDDEN_SIZE},
        image_token_id=290,
    ),
    "qwen2_5_vl": config(
        "qwen2_5_vl",
        text_config={"rope_parameters": MROPE},
        vision_config=QWEN_VISION | {"out_hidden_size": HIDDEN_SIZE},
        image_token_id=290,
    ),
    "qwen3_vl": config(
        "qwen3_vl",
        text_config={"rope_parameters": MROPE | {"mrope_interleaved": True}},
        vision_config=QWEN_VISION
        | {"out_hidden_size": HIDDEN_SIZE, "deepstack_visual_indexes": [0, 1]},
        image_token_id=290,
    ),
    "internvl": config(
        "internvl",
        text_config={"model_type": "qwen2"},
        vision_config={"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=290,
    ),
    "smolvlm": config("smolvlm", text_config={"model_type": "llama"}, image_token_id=290),
}


def weighted_whole_model(config: PretrainedConfig) -> PreTrainedModel:
    """Makes a model with random weights, whose norms and biases are not just ones and zeros."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.eval()
    return model


def save_multimodal_model(folder: Path, model: PreTrainedModel) -> Path:
    """Writes a model and its tokenizer in the layout of Hugging Face."""
    model.save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder
