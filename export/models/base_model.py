"""Loads the backbone and its tokenizer, or opens them without reading the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME

from medusa_trt.errors import ExportError
from medusa_trt.export.heads.key_layouts import WRAPPERS
from medusa_trt.export.models.adapter import merge_adapter
from medusa_trt.export.models.checkpoint_weights import (
    find_weight_files,
    weights_from_checkpoint,
)
from medusa_trt.export.models.end_tokens import end_token_ids
from medusa_trt.export.models.gguf import list_parts
from medusa_trt.export.models.gguf_weights import weights_from_gguf
from medusa_trt.export.models.multimodal.stored_names import StoredNames
from medusa_trt.export.models.multimodal.text_part import (
    is_multimodal,
    make_text_part,
    take_text_part,
)
from medusa_trt.export.models.source import (
    ModelSource,
    load_config,
    load_whole_config,
    name_in_errors,
    silence_transformers,
)
from medusa_trt.export.models.tokenizers import has_tokenizer_beside, load_tokenizer
from medusa_trt.export.models.unread_tensors import refuse_unread
from medusa_trt.export.weights.checkpoint_files import json_from_file
from medusa_trt.export.weights.hub import find_file
from medusa_trt.export.weights.packed_weights import Packing, packing_from_config
from medusa_trt.export.weights.streamed_model import (
    Weights,
    array_from_tensor,
    is_decoder_alone,
    load_weights,
    make_empty_model,
    wrap_weights,
)
from medusa_trt.export.weights.tensor_source import PLAIN_DTYPES, refuse_failed
from medusa_trt.export.weights.tied_weights import record_ties
from medusa_trt.files import join_names

STREAMED_GGUF_BYTES = 512 << 20
"""Size from which a GGUF file is opened without reading it: each tensor is dequantized whenever it
is used. A smaller file is dequantized as a whole, once."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A backbone with its tokenizer.

    Attributes:
        source: where the files are.
        model: the backbone; its parameters have data, or they are on the meta device.
        tokenizer: the tokenizer, which runs in Rust ("fast" in transformers).
        weights: the weights of the model, which are read when they are used.
        warnings: sentences for the user about how the model was read.
        whole_type: type of the checkpoint, if the backbone is only the language model in it.
    """

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: Weights
    warnings: tuple[str, ...] = ()
    whole_type: str | None = None

    @property
    def eos_token_ids(self) -> list[int]:
        """All ids that end a reply; see `end_token_ids`.

        Raises:
            ExportError: a config names an end token by something else than an id.
        """
        configs = (self.model.generation_config, self.model.config)
        stated = [getattr(config, "eos_token_id", None) for config in configs]
        vocab_size: int = self.model.config.vocab_size
        return end_token_ids(self.tokenizer, stated, vocab_size, self.source.name)


def load_base_model(source: ModelSource) -> BaseModel:
    """Loads the tokenizer and the weights, as float32.

    Raises:
        ExportError: the model cannot be loaded, lacks weights, or is of a kind that transformers
            does not know.
        HeadsError: the adapter that belongs to it does not fit.
    """
    model = load_model(source, torch.float32)
    weights = wrap_weights(model)
    if source.gguf is not None and source.adapter is None:
        with name_in_errors(source):
            stored = weights_from_gguf(model, source.gguf) or {}
        for name, tensor in stored.items():
            weights[name].quantization = tensor.quantization
    tokenizer, warnings = load_tokenizer(source)
    if source.adapter is not None and not has_tokenizer_beside(source):
        size, size_before = model.config.vocab_size, load_config(source).vocab_size
        if size > size_before:
            warnings += (
                f"the adapter in {source.adapter} has {size} tokens, its model {size_before}, and "
                "no tokenizer lies beside it: put the one that it was trained with there",
            )
    return BaseModel(source, model, tokenizer, weights, warnings, _read_whole_type(source))


def open_base_model(source: ModelSource) -> BaseModel:
    """Opens a backbone without reading its weights, if each parameter is one tensor of a file.

    The file may be safetensors, PyTorch or GGUF. Other models are loaded into memory. For errors
    see `load_base_model`.
    """
    with name_in_errors(source):
        streamed = None if source.adapter is not None else _open_streamed(source)
    if streamed is None:
        return load_base_model(source)
    model, weights = streamed
    tokenizer, warnings = load_tokenizer(source)
    return BaseModel(source, model, tokenizer, weights, warnings, _read_whole_type(source))


def _read_whole_type(source: ModelSource) -> str | None:
    config = load_whole_config(source)
    return str(config.model_type) if is_multimodal(config) else None


def _open_streamed(source: ModelSource) -> tuple[PreTrainedModel, Weights] | None:
    """Makes the model on the meta device and finds its weights; None if it must be loaded."""
    if source.gguf is not None:
        if sum(part.stat().st_size for part in list_parts(source.gguf)) < STREAMED_GGUF_BYTES:
            return None
        model = make_empty_model(load_config(source))
        weights = weights_from_gguf(model, source.gguf)
        return None if weights is None else (model, weights)
    config = load_whole_config(source)
    packing = _read_packing(config, source)
    if packing is None and getattr(config, "quantization_config", None) is not None:
        return None  # transformers can dequantize by further methods.
    part = make_text_part(config)
    weights = weights_from_checkpoint(part, source.location, packing)
    if weights is None:
        return None
    if find_file(source.location, GENERATION_CONFIG_NAME):  # many checkpoints have none
        part.model.generation_config = GenerationConfig.from_pretrained(source.location)
    return part.model, weights


def _read_packing(config: PretrainedConfig, source: ModelSource) -> Packing | None:
    """Reads how a checkpoint packs its weights; None if they are not packed, or if only
    transformers can unpack them.

    Raises:
        ExportError: the method is unknown or not supported.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None and source.gguf is None:
        quantization = _read_old_quantization(Path(source.location))
    if quantization is None:
        return None
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    packing = packing_from_config(values)
    method = str(values.get("quant_method"))
    # transformers would ignore a method that it does not know, and would not use the scales.
    transformers_methods = {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
    if packing is None and method not in transformers_methods:
        raise ExportError(
            f"weights quantized by {method!r} are not supported: give the full-precision model, or "
            "GPTQ, AWQ, AutoRound, compressed-tensors or GGUF"
        )
    return packing


def _read_old_quantization(folder: Path) -> dict[str, Any] | None:
    """Reads the separate file in which old AutoGPTQ and AutoAWQ described a quantization."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (folder / name).is_file():
            return {"quant_method": method, **json_from_file(folder / name)}
    return None


def load_model(source: ModelSource, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """Loads the model, with its adapter merged in; `dtype` "auto" keeps the type in the file."""
    config = load_whole_config(source)
    _read_packing(config, source)  # Refuses what transformers would ignore.
    model = None if source.gguf is None else _load_gguf(source, source.gguf, config)
    if model is None and (is_multimodal(config) or is_decoder_alone(config)):
        model = _load_text_part(source, None if dtype == "auto" else dtype)
    if model is None:
        if source.gguf is None:
            with name_in_errors(source):
                find_weight_files(source.location)  # Refuses what transformers would mix up.
        model = _load_with_transformers(source, config, dtype)
    for name, parameter in model.named_parameters():
        refuse_failed(array_from_tensor(parameter.detach()), f"{source.location}: {name}")
    record_ties(model)
    if source.adapter is not None:
        with silence_transformers():
            model = merge_adapter(model, source.adapter)
        if (source.adapter / GENERATION_CONFIG_NAME).is_file():
            with name_in_errors(source):
                model.generation_config = GenerationConfig.from_pretrained(source.adapter)
    model.eval()
    return model


def _load_gguf(source: ModelSource, path: Path, config: PretrainedConfig) -> PreTrainedModel | None:
    """Loads a GGUF file as float32; None where transformers has to join its tensors."""
    with name_in_errors(source):
        model = make_empty_model(config)
        weights = weights_from_gguf(model, path)
        if weights is not None:
            load_weights(model, weights)
            return model
    if len(list_parts(path)) > 1:
        raise ExportError(
            f"{config.model_type} models can be read only from one GGUF file: join the parts of "
            f"{path} with llama-gguf-split --merge"
        )
    return None


def _load_text_part(source: ModelSource, dtype: torch.dtype | None) -> PreTrainedModel | None:
    """Loads a language model without the rest of its checkpoint; None if that cannot be read so."""
    with name_in_errors(source):
        streamed = _open_streamed(source)
        if streamed is None:
            return None
        model, weights = streamed
        load_weights(model, weights, dtype)
        return model


def _load_with_transformers(
    source: ModelSource, config: PretrainedConfig, dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    options: dict[str, Any] = {"key_mapping": dict.fromkeys(WRAPPERS, "")}
    if source.gguf_file is not None:
        options = {"gguf_file": source.gguf_file}
    auto_class = AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM
    with name_in_errors(source):
        loaded: Any = auto_class.from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    part = take_text_part(loaded[0])
    names, model = StoredNames(part), part.model
    missing, unread = (
        [name for key in loaded[1][kind] if (name := names.translate(key)) is not None]
        for kind in ("missing_keys", "unexpected_keys")
    )
    if missing:
        raise ExportError(
            f"{source.location} lacks weights of the model: {join_names(missing)}; "
            "give a whole model"
        )
    refuse_unread(model, unread, source.location)
    for name, parameter in model.named_parameters():
        if parameter.dtype not in PLAIN_DTYPES:
            raise ExportError(
                f"{source.location} has {name} as {parameter.dtype}, which transformers does not "
                "dequantize here: give the full-precision model"
            )
    return model


def save_model(
    model: PreTrainedModel,
    folder: Path,
    tensors: Mapping[str, torch.Tensor] | None = None,
    **changes: object,
) -> None:
    """Writes a model in Hugging Face layout, without its tokenizer.

    `save_pretrained` of transformers refuses a model that it loaded from GGUF. It also refuses a
    generation config that has a temperature but no sampling, as some public checkpoints have.
    `tensors` are written besides, and `changes` set in the config.
    """
    values = model.config.to_dict() | changes
    values.pop("quantization_config", None)
    copy = make_empty_model(type(model.config).from_dict(values))
    state = model.state_dict()
    copy.load_state_dict(state, assign=True)
    generation = model.generation_config
    copy.generation_config = GenerationConfig()
    with silence_transformers():
        copy.save_pretrained(folder, state_dict={**state, **(tensors or {})})
    if generation is not None:
        (folder / GENERATION_CONFIG_NAME).write_text(generation.to_json_string(), "utf-8")
