"""Attention by the standard operators of opset 24."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.attention_inputs import AttentionCall, AttentionMask
from medusa_trt.export.modeling.grouped_attention import grouped_attention
from medusa_trt.export.modeling.rotary import RotaryTable
from medusa_trt.tree_configs.tree import MASKED


class StandardAttention(AttentionForm):
    """`RotaryEmbedding`, `TensorScatter` and `Attention`, for sequences of different lengths.

    New rows are written behind the cached ones of their sequence, and attention reads the first
    rows of the cache. Subclasses say how many rows that is and may replace single operators.
    """

    node_opset = 23  # The exporter fuses norms at this opset only.
    min_opset = 24
    has_attention_operator: ClassVar[bool] = True
    """Whether the opset has an operator for attention."""

    masked: ClassVar[float] = MASKED
    """The additive mask's value where a node does not see a row."""

    def _attend(self, call: AttentionCall) -> torch.Tensor:
        table = self._inputs.tables[call.layer]
        keys, values = self._update_rows(call.layer, self._rotate(call.key, table), call.value)
        bias = self.mask.within(call.window, call.chunk)
        query = self._rotate(call.query, table)
        # The operator's softcap would cap the mask together with the scores, and it has no sinks.
        is_plain = call.softcap is None and call.sinks is None
        if self.has_attention_operator and is_plain:
            inputs = [query, keys, values, bias]
            attended = self._emit("Attention", inputs, {"scale": call.scaling}, like=query)
        else:
            attended = grouped_attention(
                query, keys, values, bias, call.scaling, softcap=call.softcap, sinks=call.sinks
            )
        return attended.transpose(1, 2)

    def _update_rows(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Updates a layer's cache; returns the keys and values that are read."""
        past_keys, past_values = self._get_cache(layer)
        presents = [self._update(past_keys, key), self._update(past_values, value)]
        self.presents += presents
        keys, values = map(self._read_rows, presents)
        return keys, values

    def _rotate(self, states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
        num_rotated = 2 * table[0].shape[1]
        attributes = {"rotary_embedding_dim": num_rotated}
        return self._emit(
            "RotaryEmbedding",
            [states, *table, self._position_ids],
            attributes if num_rotated < states.shape[-1] else {},
            like=states,
        )

    def _update(self, past: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        inputs = [past, rows, self._inputs.past_length]
        return self._emit("TensorScatter", inputs, {"axis": -2, "mode": "linear"}, like=past)

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[torch.Tensor],
        attributes: dict[str, Any],
        *,
        like: torch.Tensor,
    ) -> torch.Tensor:
        """Emits a node whose output has the type and shape of `like`."""
        return torch.onnx.ops.symbolic(
            op_type,
            inputs,
            attributes,
            dtype=like.dtype,
            shape=like.shape,
            version=self.node_opset,
        )

    def _read_rows(self, present: torch.Tensor) -> torch.Tensor:
        """Reads (B, kv_heads, L, head_dim): the rest of the cache would only cost time."""
        zero, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2, dtype=torch.int64)
        return torch.onnx.ops.symbolic(
            "Slice",
            [present, zero, self._count_read_rows(), axis],
            {},
            dtype=present.dtype,
            shape=(*present.shape[:2], self.mask.whole.shape[-1], present.shape[3]),
            version=self.node_opset,
        )

    def _make_mask(self) -> AttentionMask:
        """Joins the masks of the rows that are read: the past, then the nodes, then nothing."""
        inputs = self._inputs
        num_nodes = self._count_nodes()
        columns, past = self._read_positions()[None], inputs.past_length[:, None]
        node_of = (columns - past).clamp(0, num_nodes - 1)
        nodes = self._gather_mask(node_of)
        nodes = self._hide_rest(nodes, (columns < past + num_nodes)[:, None])
        whole = torch.where((columns < past)[:, None], 0.0, nodes)[:, None]
        return AttentionMask(
            whole.to(inputs.tables[0][0].dtype),
            self._position_ids,
            torch.where(columns < past, columns, past + self._gather_offsets(node_of)),
            inputs.max_length,
            self.masked,
        )

    def _count_nodes(self) -> int:
        """Returns T, or a tensor that the tracer takes like a symbolic size."""
        return self._inputs.position_offsets.shape[-1]

    @abstractmethod
    def _read_positions(self) -> torch.Tensor:
        """Returns the positions of the rows that are read, (L,) int64 from 0."""

    @abstractmethod
    def _count_read_rows(self) -> torch.Tensor:
        """Returns L, (1,) int64."""

    @abstractmethod
    def _gather_mask(self, node_of: torch.Tensor) -> torch.Tensor:
        """Gathers (B, T, L) from the tree's mask; `node_of` is (B, L) int64, a node each row."""

    def _gather_offsets(self, node_of: torch.Tensor) -> torch.Tensor:
        """Gathers (B, L) from the nodes' depths; `node_of` is as above."""
        return self._inputs.position_offsets[node_of]

    @abstractmethod
    def _hide_rest(self, nodes: torch.Tensor, is_node: torch.Tensor) -> torch.Tensor:
        """Hides the rows that do not belong to a node.

        Args:
            nodes: (B, T, L) additive.
            is_node: (B, 1, L) bool, false after the last node.
        """


class ScatterAttention(StandardAttention):
    """The standard operators as ONNX Runtime's CPU provider runs them at any batch size.

    ONNX Runtime 1.31 takes ragged lengths and a tree mask, and writes the cache in place when past
    and present are bound to one memory.
    """

    has_position_per_row = True
    takes_tree_per_sequence = True
    min_rows = 2

    def _read_positions(self) -> torch.Tensor:
        inputs = self._inputs
        self._num_valid = inputs.past_length.max() + self._count_nodes()
        num_columns = self._num_valid.item()
        torch._check(num_columns >= 2)
        return torch.arange(num_columns)

    def _count_read_rows(self) -> torch.Tensor:
        return self._num_valid.reshape(1)

    def _gather_mask(self, node_of: torch.Tensor) -> torch.Tensor:
        mask = self._inputs.tree_mask
        return mask.gather(2, node_of[:, None].expand(-1, mask.shape[1], -1))

    def _gather_offsets(self, node_of: torch.Tensor) -> torch.Tensor:
        return self._inputs.position_offsets.gather(1, node_of)

    def _hide_rest(self, nodes: torch.Tensor, is_node: torch.Tensor) -> torch.Tensor:
        return torch.where(is_node, nodes, self.masked)
