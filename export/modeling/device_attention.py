"""Attention for TensorRT: the cache is written in place, and one mask is made for all layers."""

from functools import partial
from typing import cast

import torch
from torch import nn

from medusa_trt.export.modeling.attention_inputs import AttentionInputs, AttentionMask
from medusa_trt.export.modeling.grouped_attention import grouped_attention
from medusa_trt.export.modeling.rotary import RotaryTable, rotated

MASKED = -3e4
"""The additive mask where a node does not see a row.

Within float16's range with room for a score, and not infinite: a block of a fused kernel that holds
masked rows alone would subtract infinity from infinity.
"""


class DeviceAttention:
    """`RotaryEmbedding`, `TensorScatter` and `Attention` of opset 24, as TensorRT takes them.

    TensorRT 10.15 turns `TensorScatter` into its KV cache update, which wants the cache as network
    input, the result as network output at the same address, and an `Attention` node without past
    inputs; it drops `nonpad_kv_seqlen`, and refuses a boolean mask that two nodes share. How many
    rows of the cache are read follows from the shape of an input, not from a value, so a step can
    be captured in a CUDA graph.
    """

    opset = 23
    """The exporter fuses norms at this opset only; the finished graph is declared as opset 24."""

    def __init__(self, inputs: AttentionInputs) -> None:
        """Makes what all layers share."""
        assert inputs.cache_positions is not None
        self._inputs, self._cache_positions = inputs, inputs.cache_positions
        self._position_ids = inputs.position_ids
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
        presents = [
            self._updated(past, rows)
            for past, rows in zip(cache, (self._rotated(key, table), value), strict=True)
        ]
        self.presents += presents
        keys, values = (self._read_rows(present) for present in presents)
        bias = self.mask.within(sliding_window)
        attend = self._attended if softcap is None else partial(grouped_attention, softcap=softcap)
        attended = attend(self._rotated(query, table), keys, values, bias, float(scaling))
        return attended.transpose(1, 2), None

    def _rotated(self, states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
        num_rotated = 2 * table[0].shape[1]
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding",
            [states, *table, self._position_ids],
            {"rotary_embedding_dim": num_rotated} if num_rotated < states.shape[-1] else {},
            dtype=states.dtype,
            shape=states.shape,
            version=self.opset,
        )

    def _updated(self, past: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            [past, rows, self._inputs.past_length],
            {"axis": -2, "mode": "linear"},
            dtype=past.dtype,
            shape=past.shape,
            version=self.opset,
        )

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "Attention",
            [query, key, value, bias],
            {"scale": scaling},
            dtype=query.dtype,
            shape=query.shape,
            version=self.opset,
        )

    def _read_rows(self, present: torch.Tensor) -> torch.Tensor:
        """(B, kv_heads, L, head_dim): the rest of the cache would only cost time."""
        num_read = torch.onnx.ops.symbolic(
            "Shape", [self._cache_positions], {}, dtype=torch.int64, shape=(1,), version=self.opset
        )
        zero, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2, dtype=torch.int64)
        return torch.onnx.ops.symbolic(
            "Slice",
            [present, zero, num_read, axis],
            {},
            dtype=present.dtype,
            shape=(*present.shape[:2], self._cache_positions.shape[0], present.shape[3]),
            version=self.opset,
        )

    def _num_nodes(self) -> int:
        return self._inputs.tree_mask.shape[0]

    def _joined_mask(self) -> AttentionMask:
        """Over the rows that are read: a sequence's past, then its nodes, then nothing."""
        inputs = self._inputs
        num_nodes = self._num_nodes()
        columns, past = self._cache_positions[None], inputs.past_length[:, None]
        node_of = (columns - past).clamp(0, num_nodes - 1)
        nodes = nn.functional.embedding(node_of, inputs.tree_mask.T).transpose(1, 2)
        own = torch.where((columns < past + num_nodes)[:, None] & (nodes >= 0), 0.0, MASKED)
        return AttentionMask(
            torch.where((columns < past)[:, None], 0.0, own)[:, None].to(inputs.tables[0][0].dtype),
            self._position_ids,
            torch.where(columns < past, columns, past + inputs.position_offsets[node_of]),
            inputs.max_length,
            MASKED,
        )


class CudaAttention(DeviceAttention):
    """The same where ONNX Runtime's CUDA provider runs it: nothing is made on the host.

    That provider computes with sizes on the host and copies what meets a tensor to the device, and
    a step with such a copy cannot be a CUDA graph.
    """

    def _num_nodes(self) -> int:
        """The nodes counted on the device: the root's row of the mask holds nothing above 0."""
        # A tensor, which the tracer takes like a symbolic size.
        return cast(int, (self._inputs.tree_mask[0] <= 0).sum())


class DecomposedAttention(DeviceAttention):
    """The same with operators of TensorRT 10.3: `ScatterND`, `MatMul` and `Softmax`.

    `ScatterND` copies the cache, so its result may not be bound to the memory it came from.
    """

    opset = 18

    def __init__(self, inputs: AttentionInputs) -> None:
        """As `DeviceAttention`."""
        super().__init__(inputs)
        self._angles: dict[int, list[torch.Tensor]] = {}
        batch, num_nodes = self._position_ids.shape
        num_kv_heads = inputs.cache[0].shape[1]
        shape = (batch, num_kv_heads, num_nodes, 1)
        rows = inputs.past_length[:, None] + torch.arange(num_nodes)
        places = (
            torch.arange(batch)[:, None, None],
            torch.arange(num_kv_heads)[None, :, None],
            rows[:, None],
        )
        self._places = torch.cat([place[..., None].expand(shape) for place in places], -1)

    def _rotated(self, states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
        if id(table) not in self._angles:
            self._angles[id(table)] = [
                nn.functional.embedding(self._position_ids, each)[:, None] for each in table
            ]
        cos, sin = self._angles[id(table)]
        return rotated(states, cos, sin)

    def _updated(self, past: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "ScatterND",
            [past, self._places, rows],
            {},
            dtype=past.dtype,
            shape=past.shape,
            version=self.opset,
        )

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        return grouped_attention(query, key, value, bias, scaling)
