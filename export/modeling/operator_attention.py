"""Attention by one operator that rotates, updates the cache and attends in ONNX Runtime."""

from typing import cast

import torch
from torch import nn

from medusa_trt.export.modeling.attention_inputs import AttentionInputs, AttentionMask
from medusa_trt.export.modeling.scatter_attention import MASKED
from medusa_trt.runtime.engines.operators import DOMAIN


class CachedAttention:
    """Emits `com.microsoft.GroupQueryAttention`: rotary, cache update and masked attention.

    ONNX Runtime takes an attention bias with a past at batch 1 only, and writes the present into
    the past's memory when both are bound to it. It caps scores before it adds the bias.
    """

    op_type = "com.microsoft::GroupQueryAttention"

    def __init__(self, inputs: AttentionInputs) -> None:
        self._inputs, self._position_ids = inputs, inputs.position_ids
        self.presents: list[torch.Tensor] = []
        num_nodes = inputs.position_offsets.shape[0]
        # A symbolic size: int() would make the tracer ask for its value.
        num_past = cast(int, inputs.past_length.item())
        torch._check(num_past >= 0)
        past_mask = inputs.tree_mask.new_zeros(num_nodes, num_past)
        self.mask = AttentionMask(
            torch.cat([past_mask, inputs.tree_mask], dim=1)[None, None],
            self._position_ids,
            torch.cat([torch.arange(num_past)[None], self._position_ids], dim=1),
            inputs.max_length,
            MASKED,
        )
        total_length = (inputs.past_length + num_nodes).to(torch.int32)
        self._lengths = [total_length - 1, total_length.reshape(())]

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
        """transformers' attention interface: (1, heads, T, head_dim) → (1, T, heads, head_dim)."""
        batch, num_heads, num_nodes, head_dim = query.shape
        layer = module.layer_idx
        assert isinstance(layer, int)
        past = self._inputs.cache[2 * layer : 2 * layer + 2]
        outputs = torch.onnx.ops.symbolic_multi_out(
            self.op_type,
            [
                *(
                    states.transpose(1, 2).reshape(batch, num_nodes, -1)
                    for states in (query, key, value)
                ),
                *past,
                *self._other_inputs(layer, sliding_window),
            ],
            {
                "num_heads": num_heads,
                "kv_num_heads": key.shape[1],
                "scale": float(scaling),
                **self._attributes(softcap),
            },
            dtypes=[query.dtype, past[0].dtype, past[1].dtype],
            shapes=[(batch, num_nodes, num_heads * head_dim), past[0].shape, past[1].shape],
            version=1,
        )
        self.presents += outputs[1:]
        return outputs[0].reshape(batch, num_nodes, num_heads, head_dim), None

    def _other_inputs(self, layer: int, window: int | None) -> list[torch.Tensor]:
        tables = self._inputs.tables[layer]
        return [*self._lengths, *tables, self._position_ids, self.mask.within(window)]

    def _attributes(self, softcap: float | None) -> dict[str, int | float]:
        return {"do_rotary": 1, **({} if softcap is None else {"softcap": float(softcap)})}


class TreeAttention(CachedAttention):
    """Emits the operator library's `TreeAttention`, which makes its mask and positions itself.

    It knows neither windows nor soft-capping: see `Precision.for_attention`.
    """

    op_type = f"{DOMAIN}::TreeAttention"

    def __init__(self, inputs: AttentionInputs) -> None:
        self._inputs = inputs
        self.presents = []
        whole, positions = inputs.tree_mask[None, None], inputs.position_ids
        self.mask = AttentionMask(whole, positions, positions, inputs.max_length, MASKED)

    def _other_inputs(self, layer: int, window: int | None) -> list[torch.Tensor]:
        inputs = self._inputs
        assert self.mask.within(window) is self.mask.whole
        tables = inputs.tables[layer]
        return [inputs.past_length, inputs.position_offsets, inputs.tree_mask, *tables]

    def _attributes(self, softcap: float | None) -> dict[str, int | float]:
        assert softcap is None
        return {}
