"""Rotary embeddings: a model's own as tables, and one that leaves everything as it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

RotaryTable = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, (num_positions, rotary_dim / 2) each."""


class IdentityRotary(nn.Module):
    """Angle zero everywhere; a pass removes what remains of it from the graph."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.cos = nn.Buffer(torch.ones(1, 1, rotary_dim), persistent=False)
        self.sin = nn.Buffer(torch.zeros(1, 1, rotary_dim), persistent=False)

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:
        return self.cos.to(x.dtype), self.sin.to(x.dtype)


def fix_rotary_length(rotary: nn.Module, max_length: int) -> nn.Module:
    """A copy of a model's rotary module that treats every sequence as one of this length.

    Dynamic and LongRoPE scaling choose their frequencies by the length of the text, so a cache that
    was rotated before the choice would not fit what comes after it. As in vLLM, the longest
    sequence decides for all.

    Args:
        rotary: as transformers makes it.
        max_length: in tokens.
    """
    fixed = deepcopy(rotary)
    kinds = getattr(fixed, "rope_type", "default")
    with torch.no_grad():
        for kind in kinds if isinstance(kinds, dict) else [""]:
            _rotation(fixed, torch.arange(max_length), kind)
    # By this name transformers knows whether to choose anew.
    fixed.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"  # type: ignore[assignment]
    return fixed


@contextmanager
def fixed_rotary(model: PreTrainedModel, max_length: int) -> Iterator[None]:
    """Lets a model rotate inside the block as `fix_rotary_length` says."""
    own = model.base_model.rotary_emb
    assert isinstance(own, nn.Module)
    model.base_model.rotary_emb = fix_rotary_length(own, max_length)
    try:
        yield
    finally:
        model.base_model.rotary_emb = own


def rotation_types_from_config(config: PretrainedConfig) -> list[str | None]:
    """What each layer's rotary module calls its rotation: a type of layer, or "" for the only one.

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


def rope_parameters_from_config(config: PretrainedConfig) -> list[dict[str, object]]:
    """The parameters of each rotation, which a config has once or by types of layers."""
    found = getattr(config, "rope_parameters", None) or {}
    by_type = [value for value in found.values() if isinstance(value, dict)]
    return by_type or [found]


def make_rotary_tables(
    rotary: nn.Module, kinds: Sequence[str | None], num_positions: int
) -> dict[str | None, RotaryTable]:
    """The table of each rotation that some layer uses; of None, the one that changes nothing.

    Args:
        rotary: the model's own module.
        kinds: see `rotation_types_from_config`; at least one rotates.
        num_positions: rows of each table.
    """
    with torch.no_grad():
        tables: dict[str | None, RotaryTable] = {
            kind: _rotation(rotary, torch.arange(num_positions), kind)
            for kind in dict.fromkeys(kinds)
            if kind is not None
        }
    if None in kinds:
        cos, _ = next(iter(tables.values()))
        tables[None] = torch.ones_like(cos), torch.zeros_like(cos)
    return tables


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What `GroupQueryAttention` makes of queries or keys (..., T, head_dim).

    Source: Su et al. 2021, "RoFormer", with dimension i paired with i + rotary_dim / 2, and the
    dimensions beyond rotary_dim left alone.
    """
    half = cos.shape[-1]
    first, second, rest = states.tensor_split((half, 2 * half), dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _rotation(rotary: nn.Module, positions: torch.Tensor, kind: str) -> RotaryTable:
    tables = rotary(torch.zeros(1, 1, 1), positions[None], *([kind] if kind else []))
    half = tables[0].shape[-1] // 2
    cos, sin = (table[0, :, :half].contiguous() for table in tables)
    return cos, sin
