"""Heads in the public layout."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_models import head_tensors

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.assembly import heads_from_keys
from medusa_trt.export.heads.key_layouts import recognize
from medusa_trt.export.heads.medusa_heads import MedusaHeads

Tensors = dict[str, torch.Tensor]
HIDDEN = 16
VOCAB = 40
MAP = torch.tensor([3, 39, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])


def tensors(
    *,
    num_heads: int = 3,
    num_layers: int = 1,
    own: bool = False,
    bias: bool = True,
    projection: bool = False,
    root_map: bool = False,
    token_map: bool = False,
) -> Tensors:
    """Heads in the public layout, with this project's extensions if asked for."""
    vocab_size = (len(MAP) if token_map else VOCAB) if own else None
    found = head_tensors(
        num_heads=num_heads, num_layers=num_layers, hidden_size=HIDDEN, vocab_size=vocab_size
    )
    if projection:
        extra = head_tensors(num_heads=num_heads, num_layers=1, hidden_size=HIDDEN, seed=7)
        for head in range(num_heads):
            for kind in ("weight", "bias"):
                found[f"{head}.projection.{kind}"] = extra[f"{head}.0.linear.{kind}"]
    if root_map:
        generator = torch.Generator().manual_seed(8)
        for head in range(num_heads):
            weight = torch.randn(HIDDEN, 2 * HIDDEN, generator=generator) / HIDDEN**0.5
            found[f"{head}.root_map.weight"] = weight
            found[f"{head}.root_map.bias"] = torch.randn(HIDDEN, generator=generator)
    if not bias:
        found = {key: tensor for key, tensor in found.items() if not key.endswith(".bias")}
    return found | ({"token_map": MAP} if token_map else {})


def heads_from_tensors(tensors: Mapping[str, torch.Tensor], source: str) -> MedusaHeads:
    """Builds heads from named tensors in any layout, as `load_heads` does from a file."""
    recognized = recognize(tensors, source)
    named = {key: tensors[name] for key, name in recognized.names.items()}
    return heads_from_keys(recognized, named, source)


def check_refused(tensors: Mapping[str, torch.Tensor], message: str) -> None:
    """Checks that no heads are built from tensors, by an error that names their file."""
    with pytest.raises(HeadsError, match=message) as caught:
        heads_from_tensors(tensors, "some file")
    assert "some file" in str(caught.value)


def save_tensors(tensors: Tensors, path: Path) -> Path:
    """Writes tensors as a pickle or as safetensors, by the suffix."""
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path
