"""Rotary embeddings: a model's as tables, and one that rotates by zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

RotaryTable = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, (num_positions, rotary_dim / 2) each."""


class IdentityRotary(nn.Module):
    """Rotates by the angle zero; `RemoveIdentityRotaryPass` removes it from the graph."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.cos = nn.Buffer(torch.ones(1, 1, rotary_dim), persistent=False)
        self.sin = nn.Buffer(torch.zeros(1, 1, rotary_dim), persistent=False)

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:
        return self.cos.to(x.dtype), self.sin.to(x.dtype)


def copy_rotary(model: PreTrainedModel, max_length: int) -> nn.Module:
    """Copies a model's rotary module so that it treats every sequence as one of this length.

    Dynamic and LongRoPE scaling choose their frequencies by the length of the text. A cache with
    old frequencies would not fit new tokens after the choice changed. As in vLLM, the longest
    sequence (`max_length` tokens) decides for all texts.
    """
    fixed = deepcopy(model.base_model.rotary_emb)
    assert isinstance(fixed, nn.Module)
    kinds = getattr(fixed, "rope_type", "default")
    with torch.no_grad():
        for kind in kinds if isinstance(kinds, dict) else [""]:
            _make_table(fixed, torch.arange(max_length), kind)
    # transformers reads this attribute to decide whether it chooses frequencies for each text.
    fixed.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"  # type: ignore[assignment]
    return fixed


@contextmanager
def fix_rotary(model: PreTrainedModel, max_length: int) -> Iterator[None]:
    """Replaces a model's rotary module by that of `copy_rotary` inside the block."""
    rotary = model.base_model.rotary_emb
    model.base_model.rotary_emb = copy_rotary(model, max_length)
    try:
        yield
    finally:
        model.base_model.rotary_emb = rotary


def rotation_types_from_config(config: PretrainedConfig) -> list[str | None]:
    """Reads the rotation type of each layer: a type of layer, or "" if all rotate alike.

    None stands for a layer that does not rotate.
    """
    num_layers = config.num_hidden_layers
    by_type = getattr(config, "rope_parameters", None) or {}
    kinds: list[str | None] = [""] * num_layers
    if any(isinstance(value, dict) for value in by_type.values()):
        kinds = [kind if by_type.get(kind) else None for kind in config.layer_types[:num_layers]]
    rotates = getattr(config, "no_rope_layers", None)  # 1 where a layer does rotate
    if rotates is None:
        return kinds
    return [kind if rotates[layer] else None for layer, kind in enumerate(kinds)]


def find_longrope_length(config: PretrainedConfig) -> int | None:
    """Finds the longest text that LongRoPE rotates by its short factors; None without LongRoPE."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_type = [value for value in rope.values() if isinstance(value, dict)]
    lengths = [
        parameters.get("original_max_position_embeddings")
        for parameters in by_type or [rope]
        if parameters.get("rope_type") == "longrope"
        and parameters.get("short_factor") != parameters.get("long_factor")
    ]
    return next((length for length in lengths if isinstance(length, int)), None)


def make_rotary_tables(
    model: PreTrainedModel, max_length: int, num_positions: int
) -> dict[str | None, RotaryTable]:
    """Makes the table of each rotation type; the table of None changes nothing.

    Args:
        model: a model in which at least one layer rotates; see `rotation_types_from_config`.
        max_length: see `copy_rotary`.
        num_positions: number of rows of each table.
    """
    rotary, kinds = copy_rotary(model, max_length), rotation_types_from_config(model.config)
    with torch.no_grad():
        tables: dict[str | None, RotaryTable] = {
            kind: _make_table(rotary, torch.arange(num_positions), kind)
            for kind in dict.fromkeys(kinds)
            if kind is not None
        }
    if None in kinds:
        cos, _ = next(iter(tables.values()))
        tables[None] = torch.ones_like(cos), torch.zeros_like(cos)
    return tables


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates queries or keys (..., T, head_dim) like `GroupQueryAttention`.

    Source: Su et al. 2021, "RoFormer", with dimension i paired with i + rotary_dim / 2, and the
    dimensions beyond rotary_dim left alone.
    """
    half = cos.shape[-1]
    first, second, rest = states.tensor_split((half, 2 * half), dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _make_table(rotary: nn.Module, positions: torch.Tensor, kind: str) -> RotaryTable:
    tables = rotary(torch.zeros(1, 1, 1), positions[None], *([kind] if kind else []))
    half = tables[0].shape[-1] // 2
    cos, sin = (table[0, :, :half].contiguous() for table in tables)
    return cos, sin
