"""The config of a GGUF file, with the fields that transformers does not read.

Left unread, rotations, windows and sizes would be the defaults of the architecture, without a word.
Names of the fields are those of llama.cpp's gguf-py (constants.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from transformers import AutoConfig, PretrainedConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.models.gguf import GgufModel

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Divisors of the frequencies: of Llama 3.1 and later, and of LongRoPE."""

_FIELDS_FILE = "fields.gguf"
_WRITTEN_ANYWAY = {"general.architecture", "split.count", "split.no", "split.tensors.count"}

_KNOWN = {
    "llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "gemma2",
    "gemma3_text", "starcoder2",
}  # fmt: skip
"""Types of models whose fields are known; of others transformers' reading is taken."""

_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Fields `tokenizer.ggml.…` that name an end of text, turn or message."""

_REFUSED = (
    "attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale", "embedding_scale",
    "logit_scale", "residual_scale",
)  # fmt: skip
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_WINDOWED = {"phi3", "mistral", "starcoder2", "gemma2", "gemma3_text"}
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3_text", 62)}
"""The 27B models, whose queries are scaled by hidden size / heads: no field says so, and llama.cpp
knows them by their number of layers (src/models/gemma2.cpp, gemma3.cpp)."""


def config_from_gguf(model: GgufModel) -> PretrainedConfig:
    """Makes a config of the fields of a GGUF file.

    transformers reads fields from files only, and takes half a minute for a vocabulary of 262
    thousand tokens. So it gets a file with the fields that make a config and nothing else.

    Raises:
        ExportError: the file asks for something that the architecture does not have.
    """
    with TemporaryDirectory() as folder:
        _write_fields(model, Path(folder) / _FIELDS_FILE)
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, gguf_file=_FIELDS_FILE)
    config.name_or_path = str(model.path)
    _set_marks(config, model)
    complete_config(config, model)
    return config


def _set_marks(config: PretrainedConfig, model: GgufModel) -> None:
    """Start and end tokens: those of the file, and not those that the class has by default."""
    fields = model.fields
    is_sentencepiece = fields.get("tokenizer.ggml.model") == "llama"
    defaults = {"bos_token_id": 1, "eos_token_id": 2} if is_sentencepiece else {}  # llama.cpp's
    start, *ends = (
        fields.get(f"tokenizer.ggml.{name}", defaults.get(name))
        for name in ("bos_token_id", *_END_FIELDS)
    )
    config.bos_token_id = start
    config.eos_token_id = sorted({end for end in ends if end is not None}) or None


def _write_fields(model: GgufModel, path: Path) -> None:
    """Writes a small GGUF file: no lists of texts, and one number for each tensor."""
    writer = GGUFWriter(path, model.architecture)
    for name, value in model.fields.items():
        if name.startswith("tokenizer.ggml.") or name in _WRITTEN_ANYWAY or value == []:
            continue
        kind = GGUFValueType.get_type(value)
        is_large = kind == GGUFValueType.INT32 and not -(1 << 31) <= value < 1 << 31
        writer.add_key_value(name, value, GGUFValueType.UINT64 if is_large else kind)
    if (name := f"{model.architecture}.vocab_size") not in model.fields:
        writer.add_uint32(name, model.fields.get("tokenizer.ggml.tokens", 0))
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def complete_config(config: PretrainedConfig, model: GgufModel) -> None:
    """Adds to the config that transformers reads from a file what it left out.

    Raises:
        ExportError: the file asks for something that the architecture does not have.
    """
    if config.model_type not in _KNOWN:
        return
    prefix = f"{model.architecture}."
    fields = {
        name.removeprefix(prefix): value
        for name, value in model.fields.items()
        if name.startswith(prefix) and not isinstance(value, list)
    }
    if refused := [name for name in _REFUSED if fields.get(name)]:
        raise _make_unsupported_error(model.path, refused[0], fields)
    _complete_sizes(config, model.path, fields)
    factors = {
        tensor.name: tensor.read().ravel().tolist()
        for tensor in model.tensors
        if tensor.name in ROPE_TENSORS
    }
    _complete_rotation(config, model.path, fields, factors)


def _complete_sizes(config: PretrainedConfig, path: Path, fields: dict[str, Any]) -> None:
    """Heads, windows, scales and caps."""
    if "attention.head_count_kv" in fields:
        config.num_key_value_heads = fields["attention.head_count_kv"]
    if "attention.key_length" in fields and hasattr(config, "head_dim"):
        config.head_dim = fields["attention.key_length"]
    window = fields.get("attention.sliding_window")
    if window and window < config.max_position_embeddings:
        if config.model_type not in _WINDOWED:
            raise _make_unsupported_error(path, "attention.sliding_window", fields)
        config.sliding_window = window
    for name in _CAPS:
        if fields.get(name):
            if not hasattr(config, name):
                raise _make_unsupported_error(path, name, fields)
            setattr(config, name, fields[name])
    if (config.model_type, config.num_hidden_layers) in _SCALED_BY_WIDTH:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads


def _complete_rotation(
    config: PretrainedConfig,
    path: Path,
    fields: dict[str, Any],
    factors: Mapping[str, Sequence[float]],
) -> None:
    """Base, scaling and number of rotated dimensions, of the layers that see everything."""
    by_type = config.rope_parameters
    rope = by_type.get("full_attention", by_type)
    if "rope.freq_base" in fields:
        rope["rope_theta"] = fields["rope.freq_base"]
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary_dim = fields.get("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        rope["partial_rotary_factor"] = rotary_dim / head_dim
    kind = fields.get("rope.scaling.type", "linear" if "rope.scale_linear" in fields else "none")
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 1.0))
    length = fields.get("rope.scaling.original_context_length", config.max_position_embeddings)
    short = factors.get("rope_factors_short.weight", factors.get("rope_freqs.weight"))
    if short is not None:
        attention = fields.get("rope.scaling.attn_factor")
        if "rope_freqs.weight" in factors:
            attention = 1.0
        rope |= {
            "rope_type": "longrope",
            "short_factor": list(short),
            "long_factor": list(factors.get("rope_factors_long.weight", short)),
            "original_max_position_embeddings": length,
            "attention_factor": attention,
        }
        if hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = length
    elif kind in ("linear", "yarn") and factor != 1:
        rope |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = length
    elif kind not in ("none", "linear", "yarn"):
        raise _make_unsupported_error(path, "rope.scaling.type", fields)


def _make_unsupported_error(path: Path, name: str, fields: dict[str, Any]) -> ExportError:
    return ExportError(
        f"{path} has {name} = {fields[name]!r}, which is not read from GGUF files of its kind: "
        "give the model as safetensors"
    )
