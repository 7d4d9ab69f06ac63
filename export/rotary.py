"""Rotary embeddings: a model's own as tables, and one that leaves everything as it is."""

import torch
from torch import nn


class IdentityRotary(nn.Module):
    """Angle zero everywhere; a pass removes what remains of it from the graph."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.cos = nn.Buffer(torch.ones(1, 1, rotary_dim), persistent=False)
        self.sin = nn.Buffer(torch.zeros(1, 1, rotary_dim), persistent=False)

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:
        return self.cos.to(x.dtype), self.sin.to(x.dtype)


def rotary_tables(rotary: nn.Module, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (num_positions, rotary_dim / 2) from the model's own rotary module."""
    probe = torch.zeros(1, 1, 1)
    with torch.no_grad():
        tables = rotary(probe, torch.arange(num_positions)[None])
    half = tables[0].shape[-1] // 2
    cos, sin = (table[0, :, :half].contiguous() for table in tables)
    return cos, sin


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What `GroupQueryAttention` makes of queries or keys (..., T, head_dim).

    Source: Su et al. 2021, "RoFormer", with dimension i paired with i + rotary_dim / 2, and the
    dimensions beyond rotary_dim left alone.
    """
    half = cos.shape[-1]
    first, second, rest = states.tensor_split((half, 2 * half), dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
