"""Heads to convert, and conversions as a user asks for them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.head_files import Tensors
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors
from torch import nn

from medusa_trt.export.head_conversion.options import ConvertOptions
from medusa_trt.export.head_conversion.saving import convert_heads

MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])


class Block(nn.Module):
    """A residual block with FasterDecoding's names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)


def make_content(*, own: bool = True, **options: int) -> Tensors:
    """Makes two heads of one layer."""
    vocab_size = VOCAB_SIZE if own else None
    return head_tensors(num_heads=2, vocab_size=vocab_size, **({"num_layers": 1} | options))


def save_heads_file(path: Path, tensors: Tensors) -> Path:
    """Writes heads to a safetensors file."""
    save_file(tensors, path)
    return path


def convert(source: Path, to: str, output: Path, **options: Any) -> Path:
    """Converts heads; the options are those of the command."""
    options = {"model": None} | options
    model = None if options["model"] is None else str(options["model"])
    values = options | {"model": model}
    convert_heads(ConvertOptions(source=str(source), to=to, output=output, **values), print)
    return output


def read_unembedding(model: Path) -> torch.Tensor:
    """Reads the unembedding of a saved model."""
    return load_file(model / "model.safetensors")["lm_head.weight"]
