"""Loads the backbone for training: on its device, in its precision, perhaps quantized."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from medusa_trt.errors import MedusaWarning, TrainingError, describe_error
from medusa_trt.export.models.base_model import BaseModel, load_base_model
from medusa_trt.export.models.multimodal.text_part import is_multimodal
from medusa_trt.export.models.source import (
    ModelSource,
    load_whole_config,
    silence_transformers,
    source_from_name,
)
from medusa_trt.export.models.tokenizers import load_tokenizer
from medusa_trt.training.options import Quantization

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes 0.50.2's 4-bit layers. Where it is true, a layer reorders its weights
when it first runs, and orders them back when its state is read for a checkpoint. The weights that
come back are wrong."""


def load_backbone(
    name: str, dtype: torch.dtype | None = None, quantization: Quantization | None = None
) -> BaseModel:
    """Loads a backbone onto the GPU, if there is one.

    Its parameters keep `requires_grad`, although training gives them no gradient: without it, torch
    2.13 is slower on a CPU in bfloat16. Generating eight tokens for 128 texts of 60 tokens takes
    18.0 s instead of 2.8 s (SmolLM2-135M, two cores, inference mode both times).

    Args:
        name: whatever `medusa-export --model` takes.
        dtype: data type of its weights; if None, bfloat16 where the hardware supports it, else
            float32.
        quantization: load the linear layers of its blocks in 8 or 4 bits through bitsandbytes;
            `dtype` is then that of the other weights and of the computation.

    Raises:
        ExportError: there is no such model.
        TrainingError: bitsandbytes is not installed, or it cannot quantize the model.
    """
    source = source_from_name(name)
    device = select_device()
    if quantization is not None:
        _check_quantization(source, quantization)
        quantized = _load_quantized(source, dtype or select_dtype(device), quantization)
        tokenizer, notes = load_tokenizer(source)
        base = BaseModel(source, quantized, tokenizer, {}, notes)
    else:
        base = load_base_model(source)
    for text in base.warnings:
        warnings.warn(text, MedusaWarning, stacklevel=2)
    if quantization is not None:
        return base
    module: nn.Module = base.model
    module.to(device=device, dtype=dtype or select_dtype(device))
    return base


def select_device() -> torch.device:
    """Selects the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def select_dtype(device: torch.device) -> torch.dtype:
    """Selects bfloat16 if the device has instructions for it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def describe_precision(model: PreTrainedModel) -> str:
    """Describes a model's precision for records: "bfloat16", or "4bit bfloat16" if quantized."""
    bits = [q for q in get_args(Quantization) if getattr(model, f"is_loaded_in_{q}", False)]
    return " ".join([*bits, str(model.dtype).removeprefix("torch.")])


@contextmanager
def observe_unembedding(
    model: nn.Module, observe: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Replaces each input (B, T, hidden) of the unembedding with the result of `observe`."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return observe(inputs[0])

    unembedding: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    with unembedding.register_forward_pre_hook(hook):
        yield


def _check_quantization(source: ModelSource, quantization: Quantization) -> None:
    if source.gguf_file is not None or source.adapter is not None:
        kind = "a GGUF file" if source.adapter is None else "an adapter to merge"
        raise TrainingError(
            f"{source.name} is {kind}, which cannot be loaded in {quantization}: give the model as "
            "a Hugging Face folder or hub id, or leave out --quantization"
        )
    if is_multimodal(config := load_whole_config(source)):
        raise TrainingError(
            f"{source.name} is a {config.model_type} model, whose text part cannot be loaded in "
            f"{quantization}: leave out --quantization"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise TrainingError(
            f"the weights of {source.name} are quantized already: leave out --quantization"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"loading in {quantization} needs bitsandbytes: "
            "pip install 'medusa-trt[train-quantized]', or leave out --quantization"
        )


def _load_quantized(
    source: ModelSource, dtype: torch.dtype, quantization: Quantization
) -> PreTrainedModel:
    """Quantizes each weight as it is loaded, so that the whole model is never in memory."""
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",  # Dettmers et al. 2023, "QLoRA"
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        with silence_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.location,
                dtype=dtype,
                quantization_config=config,
                device_map={"": select_device()},
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise TrainingError(
            f"cannot load {source.location} in {quantization}: {describe_error(error)}"
        ) from error
    model: PreTrainedModel = loaded[0]
    if missing := loaded[1]["missing_keys"]:
        raise TrainingError(f"{source.location} lacks weights: {', '.join(sorted(missing)[:5])}")
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
    model.eval()
    return model
