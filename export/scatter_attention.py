"""Attention for several sequences: `TensorScatter` into the cache, then `Attention`."""

from collections.abc import Sequence

import torch
from torch import nn

MASKED = -3.4028234663852886e38
"""The additive mask's value where a node does not see another: the least float32."""

_TRACED_OPSET = 23
"""The exporter fuses norms at this opset only; the finished graph is declared as opset 24."""


class ScatterAttention:
    """Rotates, writes each sequence's new rows at its own length, and attends to the valid rows.

    ONNX Runtime 1.31 takes this form at any batch size, with ragged lengths and a tree mask, and
    writes the cache in place when past and present are bound to one memory.
    """

    def __init__(
        self,
        *,
        cache: Sequence[torch.Tensor],
        cos: torch.Tensor,
        sin: torch.Tensor,
        past_length: torch.Tensor,
        position_ids: torch.Tensor,
        tree_mask: torch.Tensor,
        num_nodes: int,
    ) -> None:
        """Makes what all layers share.

        Args:
            cache: key and value of each layer in turn, (B, kv_heads, capacity, head_dim).
            cos: (positions, head_dim / 2).
            sin: (positions, head_dim / 2).
            past_length: (B,) int64.
            position_ids: (B, T) int64.
            tree_mask: (T, T) additive.
            num_nodes: T.
        """
        self.cache = cache
        self.presents: list[torch.Tensor] = []
        self._rotary_inputs = [cos, sin, position_ids]
        self._past_length = past_length
        self._num_valid = past_length.max() + num_nodes
        self.bias = self._joined_mask(tree_mask, num_nodes)

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface: (B, heads, T, head_dim) → (B, T, heads, head_dim)."""
        layer = module.layer_idx
        assert isinstance(layer, int)
        valid = []
        for past, rows in zip(
            self.cache[2 * layer : 2 * layer + 2], (self._rotated(key), value), strict=True
        ):
            present = torch.onnx.ops.symbolic(
                "TensorScatter",
                [past, rows, self._past_length],
                {"axis": -2, "mode": "linear"},
                dtype=past.dtype,
                shape=past.shape,
                version=_TRACED_OPSET,
            )
            self.presents.append(present)
            valid.append(self._valid_rows(present))
        attended = torch.onnx.ops.symbolic(
            "Attention",
            [self._rotated(query), *valid, self.bias],
            {"scale": float(scaling)},
            dtype=query.dtype,
            shape=query.shape,
            version=_TRACED_OPSET,
        )
        return attended.transpose(1, 2), None

    def _rotated(self, states: torch.Tensor) -> torch.Tensor:
        cos, sin, position_ids = self._rotary_inputs
        num_rotated = 2 * cos.shape[1]
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding",
            [states, cos, sin, position_ids],
            {"rotary_embedding_dim": num_rotated} if num_rotated < states.shape[-1] else {},
            dtype=states.dtype,
            shape=states.shape,
            version=_TRACED_OPSET,
        )

    def _valid_rows(self, present: torch.Tensor) -> torch.Tensor:
        """The cache up to the longest sequence's last node: the rest would only cost time."""
        shape = (*present.shape[:2], self.bias.shape[-1], present.shape[3])
        zero, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2, dtype=torch.int64)
        return torch.onnx.ops.symbolic(
            "Slice",
            [present, zero, self._num_valid.reshape(1), axis],
            {},
            dtype=present.dtype,
            shape=shape,
            version=_TRACED_OPSET,
        )

    def _joined_mask(self, tree_mask: torch.Tensor, num_nodes: int) -> torch.Tensor:
        """(B, 1, T, valid rows) additive: a sequence's past, then its nodes, then nothing."""
        num_columns = self._num_valid.item()
        torch._check(num_columns >= 2)
        columns = torch.arange(num_columns)[None] - self._past_length[:, None]
        nodes = tree_mask.T[columns.clamp(0, num_nodes - 1)].transpose(1, 2)
        own = torch.where((columns < num_nodes)[:, None], nodes, MASKED)
        return torch.where((columns < 0)[:, None], 0.0, own)[:, None]
