"""The backbone as training uses it: its precision, its device, and what its unembedding reads."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from medusa_trt.errors import TrainingError
from medusa_trt.export.base_model import BaseModel, load_base_model, source_from_name

Quantization = Literal["8bit", "4bit"]


def load_backbone(
    name: str, dtype: torch.dtype | None = None, quantization: Quantization | None = None
) -> BaseModel:
    """Loads a backbone onto the GPU, if there is one.

    Its parameters keep `requires_grad`, although nothing here gives them a gradient: on a CPU torch
    2.13 takes 18.0 s for products in bfloat16 without it that take 2.8 s with it (eight tokens for
    128 texts of 60, SmolLM2-135M, two cores, inference mode both times).

    Args:
        name: whatever `medusa-export --model` takes.
        dtype: of its weights; bfloat16 where the hardware multiplies it, else float32.
        quantization: load its weights in 8 or 4 bits, through bitsandbytes.

    Raises:
        ExportError: no such model.
        TrainingError: quantization without bitsandbytes.
    """
    source = source_from_name(name)
    if quantization is not None:
        _check_quantization(quantization)
    base = load_base_model(source)
    if quantization is not None:
        base = replace(base, model=_quantized(source.location, quantization))
    else:
        module: nn.Module = base.model
        module.to(device=best_device(), dtype=dtype or best_dtype(best_device()))
    return base


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for its products, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def unembedding_of(model: PreTrainedModel) -> torch.Tensor:
    """(vocab, hidden) weight that turns hidden states to logits, without a gradient."""
    layer = model.get_output_embeddings()
    assert layer is not None
    weight: torch.Tensor = layer.weight.detach()
    return weight


@contextmanager
def observed_unembedding(
    model: nn.Module, observe: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Shows `observe` each input (B, T, hidden) of the unembedding; it reads what is returned."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return observe(inputs[0])

    unembedding: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    with unembedding.register_forward_pre_hook(hook):
        yield


def _check_quantization(quantization: Quantization) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"loading in {quantization} needs bitsandbytes: pip install bitsandbytes, "
            "or leave out --quantization"
        )


def _quantized(location: str, quantization: Quantization) -> PreTrainedModel:
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        location, quantization_config=config, device_map={"": best_device()}
    )
    model.eval()
    return model
