"""Attention for TensorRT: the cache is written in place, and one mask is made for all layers."""

from collections.abc import Sequence

import torch
from torch import nn

from medusa_trt.export.rotary import rotated

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

    def __init__(
        self,
        *,
        cache: Sequence[torch.Tensor],
        cos: torch.Tensor,
        sin: torch.Tensor,
        past_length: torch.Tensor,
        position_ids: torch.Tensor,
        tree_mask: torch.Tensor,
        cache_positions: torch.Tensor,
    ) -> None:
        """Makes what all layers share.

        Args:
            cache: key and value of each layer in turn, (B, kv_heads, capacity, head_dim).
            cos: (positions, rotary_dim / 2).
            sin: (positions, rotary_dim / 2).
            past_length: (B,) int64.
            position_ids: (B, T) int64.
            tree_mask: (T, T) float32 additive.
            cache_positions: (L,) int64, 0 to L - 1: the rows of the cache that are read.
        """
        self.cache = cache
        self.presents: list[torch.Tensor] = []
        self._rotary_inputs = [cos, sin, position_ids]
        self._past_length, self._cache_positions = past_length, cache_positions
        self.bias = self._joined_mask(tree_mask).to(cos.dtype)

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
        keys, values = (
            self._updated(past, rows)
            for past, rows in zip(
                self.cache[2 * layer : 2 * layer + 2], (self._rotated(key), value), strict=True
            )
        )
        self.presents += keys, values
        attended = self._attended(
            self._rotated(query), self._read_rows(keys), self._read_rows(values), float(scaling)
        )
        return attended.transpose(1, 2), None

    def _rotated(self, states: torch.Tensor) -> torch.Tensor:
        cos, _, _ = self._rotary_inputs
        num_rotated = 2 * cos.shape[1]
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding",
            [states, *self._rotary_inputs],
            {"rotary_embedding_dim": num_rotated} if num_rotated < states.shape[-1] else {},
            dtype=states.dtype,
            shape=states.shape,
            version=self.opset,
        )

    def _updated(self, past: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            [past, rows, self._past_length],
            {"axis": -2, "mode": "linear"},
            dtype=past.dtype,
            shape=past.shape,
            version=self.opset,
        )

    def _attended(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "Attention",
            [query, key, value, self.bias],
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

    def _joined_mask(self, tree_mask: torch.Tensor) -> torch.Tensor:
        """(B, 1, T, L) additive: a sequence's past, then its nodes, then nothing."""
        num_nodes = tree_mask.shape[0]
        columns = self._cache_positions[None] - self._past_length[:, None]
        nodes = nn.functional.embedding(columns.clamp(0, num_nodes - 1), tree_mask.T)
        nodes = nodes.transpose(1, 2)
        own = torch.where((columns < num_nodes)[:, None] & (nodes >= 0), 0.0, MASKED)
        return torch.where((columns < 0)[:, None], 0.0, own)[:, None]


class DecomposedAttention(DeviceAttention):
    """The same with operators of TensorRT 10.3: `ScatterND`, `MatMul` and `Softmax`.

    `ScatterND` copies the cache, so its result may not be bound to the memory it came from.
    """

    opset = 18

    def __init__(
        self,
        *,
        cache: Sequence[torch.Tensor],
        cos: torch.Tensor,
        sin: torch.Tensor,
        past_length: torch.Tensor,
        position_ids: torch.Tensor,
        tree_mask: torch.Tensor,
        cache_positions: torch.Tensor,
    ) -> None:
        """As `DeviceAttention`."""
        super().__init__(
            cache=cache,
            cos=cos,
            sin=sin,
            past_length=past_length,
            position_ids=position_ids,
            tree_mask=tree_mask,
            cache_positions=cache_positions,
        )
        angles = (nn.functional.embedding(position_ids, table) for table in (cos, sin))
        self._angles = [table[:, None] for table in angles]
        batch, num_nodes = position_ids.shape
        num_kv_heads = cache[0].shape[1]
        shape = (batch, num_kv_heads, num_nodes, 1)
        rows = past_length[:, None] + torch.arange(num_nodes)
        places = (
            torch.arange(batch)[:, None, None],
            torch.arange(num_kv_heads)[None, :, None],
            rows[:, None],
        )
        self._places = torch.cat([place[..., None].expand(shape) for place in places], -1)

    def _rotated(self, states: torch.Tensor) -> torch.Tensor:
        return rotated(states, *self._angles)

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
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """The query heads of one key-value head as rows of one product, so keys are not repeated.

        Source: Ainslie et al. 2023, "GQA".
        """
        batch, num_heads, num_nodes, head_dim = query.shape
        num_kv_heads = key.shape[1]
        group = num_heads // num_kv_heads
        folded = (query * scaling).reshape(batch, num_kv_heads, group * num_nodes, head_dim)
        scores = (folded @ key.transpose(2, 3)).reshape(batch, num_kv_heads, group, num_nodes, -1)
        masked = (scores + self.bias[:, :, None]).float()
        weights = torch.softmax(masked, -1).to(value.dtype)
        flat = weights.reshape(batch, num_kv_heads, group * num_nodes, -1)
        return (flat @ value).reshape(batch, num_heads, num_nodes, head_dim)
