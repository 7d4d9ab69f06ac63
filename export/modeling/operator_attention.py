"""Attention by one operator that rotates, updates the cache and attends in ONNX Runtime."""

from typing import ClassVar, cast

import torch

from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.attention_inputs import (
    AttentionCall,
    AttentionMask,
    drop_idle_size,
)
from medusa_trt.runtime.engines.operators import DOMAIN


class CachedAttention(AttentionForm):
    """`com.microsoft.GroupQueryAttention`: rotary, cache update and masked attention.

    ONNX Runtime takes an attention bias with a past at batch 1 only, and writes the present into
    the past's memory when both are bound to it. It caps scores before it adds the bias, and takes
    sinks as its last input.
    """

    takes_batch = False
    has_position_per_row = True
    min_rows = 2
    op_type: ClassVar[str] = "com.microsoft::GroupQueryAttention"

    def _make_mask(self) -> AttentionMask:
        inputs, num_nodes = self._inputs, self._inputs.position_offsets.shape[0]
        # A symbolic size: int() would make the tracer ask for its value.
        num_past = cast(int, inputs.past_length.item())
        torch._check(num_past >= 0)
        past_mask = inputs.tree_mask.new_zeros(num_nodes, num_past)
        mask = AttentionMask(
            torch.cat([past_mask, inputs.tree_mask], dim=1)[None, None],
            self._position_ids,
            torch.cat([torch.arange(num_past)[None], self._position_ids], dim=1),
            inputs.max_length,
        )
        total_length = (inputs.past_length + num_nodes).to(torch.int32)
        self._lengths = [total_length - 1, total_length.reshape(())]
        return mask

    def _attend(self, call: AttentionCall) -> torch.Tensor:
        batch, num_heads, num_nodes, head_dim = call.query.shape
        past = self._get_cache(call.layer)
        outputs = torch.onnx.ops.symbolic_multi_out(
            self.op_type,
            [
                *(
                    states.transpose(1, 2).reshape(batch, num_nodes, -1)
                    for states in (call.query, call.key, call.value)
                ),
                *past,
                *self._list_other_inputs(call),
            ],
            {
                "num_heads": num_heads,
                "kv_num_heads": call.key.shape[1],
                "scale": call.scaling,
                **self._list_other_attributes(call),
            },
            dtypes=[call.query.dtype, past[0].dtype, past[1].dtype],
            shapes=[(batch, num_nodes, num_heads * head_dim), past[0].shape, past[1].shape],
            version=1,
        )
        self.presents += outputs[1:]
        return outputs[0].reshape(batch, num_nodes, num_heads, head_dim)

    def _list_other_inputs(self, call: AttentionCall) -> list[torch.Tensor]:
        """Returns the operator's inputs after states and cache."""
        return [
            *self._lengths,
            *self._inputs.tables[call.layer],
            self._position_ids,
            self.mask.within(call.window, call.chunk),
            *([] if call.sinks is None else [call.sinks]),
        ]

    def _list_other_attributes(self, call: AttentionCall) -> dict[str, int | float]:
        """Returns the operator's attributes besides head counts and scale."""
        return {"do_rotary": 1, **({} if call.softcap is None else {"softcap": call.softcap})}


class TreeAttention(CachedAttention):
    """The operator library's `TreeAttention`, which makes its mask and positions itself.

    It reads only what a window or chunk lets a node see.
    """

    takes_batch = True
    takes_tree_per_sequence = True
    uses_library = True
    has_position_per_row = False
    min_rows = 1
    cache_dtype = "bfloat16"
    op_type = f"{DOMAIN}::TreeAttention"

    def _make_mask(self) -> AttentionMask:
        inputs, positions = self._inputs, self._position_ids
        return AttentionMask(inputs.tree_mask[:, None], positions, positions, inputs.max_length)

    def _list_other_inputs(self, call: AttentionCall) -> list[torch.Tensor]:
        inputs = self._inputs
        tree = [inputs.past_length, inputs.position_offsets, inputs.tree_mask]
        sinks = [] if call.sinks is None else [call.sinks]
        return [*tree, *inputs.tables[call.layer], *sinks]

    def _list_other_attributes(self, call: AttentionCall) -> dict[str, int | float]:
        limits = {
            "window": drop_idle_size(call.window, self._inputs.max_length),
            "chunk": drop_idle_size(call.chunk, self._inputs.max_length),
            "softcap": call.softcap,
        }
        return {name: value for name, value in limits.items() if value is not None}
