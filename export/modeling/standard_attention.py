"""Attention for several sequences: `TensorScatter` into the cache, then `Attention`."""

import torch
from torch import nn

from medusa_trt.export.modeling.attention_inputs import AttentionInputs, AttentionMask
from medusa_trt.export.modeling.grouped_attention import grouped_attention
from medusa_trt.export.modeling.rotary import RotaryTable

MASKED = -3.4028234663852886e38
"""The additive mask's value where a node does not see another: the least float32."""

_TRACED_OPSET = 23
"""The exporter fuses norms at this opset only; the finished graph is declared as opset 24."""


class ScatterAttention:
    """Rotates, writes each sequence's new rows at its own length, and attends to the valid rows.

    ONNX Runtime 1.31 takes this form at any batch size, with ragged lengths and a tree mask, and
    writes the cache in place when past and present are bound to one memory.
    """

    def __init__(self, inputs: AttentionInputs) -> None:
        """Makes what all layers share."""
        self._inputs = inputs
        self._position_ids = inputs.position_ids
        self._num_valid = inputs.past_length.max() + inputs.position_offsets.shape[0]
        self.presents: list[torch.Tensor] = []
        self.mask = self._joined_mask()

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface: (B, heads, T, head_dim) → (B, T, heads, head_dim)."""
        layer = module.layer_idx
        assert isinstance(layer, int)
        table = self._inputs.tables[layer]
        cache = self._inputs.cache[2 * layer : 2 * layer + 2]
        valid = []
        for past, rows in zip(cache, (self._rotated(key, table), value), strict=True):
            present = torch.onnx.ops.symbolic(
                "TensorScatter",
                [past, rows, self._inputs.past_length],
                {"axis": -2, "mode": "linear"},
                dtype=past.dtype,
                shape=past.shape,
                version=_TRACED_OPSET,
            )
            self.presents.append(present)
            valid.append(self._valid_rows(present))
        rotated = self._rotated(query, table)
        bias = self.mask.within(sliding_window)
        if softcap is not None:
            # Not by the operator's own attribute, which caps the mask with the scores.
            keys, values = valid
            capped = grouped_attention(rotated, keys, values, bias, scaling, softcap)
            return capped.transpose(1, 2), None
        attended = torch.onnx.ops.symbolic(
            "Attention",
            [rotated, *valid, bias],
            {"scale": float(scaling)},
            dtype=query.dtype,
            shape=query.shape,
            version=_TRACED_OPSET,
        )
        return attended.transpose(1, 2), None

    def _rotated(self, states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
        num_rotated = 2 * table[0].shape[1]
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding",
            [states, *table, self._position_ids],
            {"rotary_embedding_dim": num_rotated} if num_rotated < states.shape[-1] else {},
            dtype=states.dtype,
            shape=states.shape,
            version=_TRACED_OPSET,
        )

    def _valid_rows(self, present: torch.Tensor) -> torch.Tensor:
        """The cache up to the longest sequence's last node: the rest would only cost time."""
        shape = (*present.shape[:2], self.mask.whole.shape[-1], present.shape[3])
        zero, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2, dtype=torch.int64)
        return torch.onnx.ops.symbolic(
            "Slice",
            [present, zero, self._num_valid.reshape(1), axis],
            {},
            dtype=present.dtype,
            shape=shape,
            version=_TRACED_OPSET,
        )

    def _joined_mask(self) -> AttentionMask:
        """Over the valid rows: a sequence's past, then its nodes, then nothing."""
        inputs = self._inputs
        num_nodes = inputs.position_offsets.shape[0]
        num_columns = self._num_valid.item()
        torch._check(num_columns >= 2)
        columns = torch.arange(num_columns)[None]
        past = inputs.past_length[:, None]
        node_of = (columns - past).clamp(0, num_nodes - 1)
        nodes = inputs.tree_mask.T[node_of].transpose(1, 2)
        own = torch.where((columns < past + num_nodes)[:, None], nodes, MASKED)
        return AttentionMask(
            torch.where((columns < past)[:, None], 0.0, own)[:, None],
            self._position_ids,
            torch.where(columns < past, columns, past + inputs.position_offsets[node_of]),
            inputs.max_length,
            MASKED,
        )
