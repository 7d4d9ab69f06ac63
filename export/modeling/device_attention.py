"""Attention on a GPU: no size depends on a value, so a step can be captured in a CUDA graph."""

from typing import cast

import torch
from torch import nn

from medusa_trt.export.modeling.attention_inputs import AttentionInputs
from medusa_trt.export.modeling.rotary import RotaryTable, rotate
from medusa_trt.export.modeling.standard_attention import StandardAttention


class DeviceAttention(StandardAttention):
    """The standard operators as TensorRT takes them.

    TensorRT 10.15 turns `TensorScatter` into its KV cache update, which wants the cache as network
    input, the result as network output at the same address, and an `Attention` node without past
    inputs; it drops `nonpad_kv_seqlen`, and refuses a boolean mask that two nodes share. How many
    rows of the cache are read follows from the shape of an input.
    """

    is_portable = True
    reads_cache_positions = True
    masked = -3e4
    """Within float16's range with room for a score, and not infinite: a block of a fused kernel
    that holds masked rows alone would subtract infinity from infinity."""

    def _read_positions(self) -> torch.Tensor:
        assert self._inputs.cache_positions is not None
        return self._inputs.cache_positions

    def _count_read_rows(self) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "Shape",
            [self._read_positions()],
            {},
            dtype=torch.int64,
            shape=(1,),
            version=self.node_opset,
        )

    def _gather_mask(self, node_of: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(node_of, self._inputs.tree_mask.T).transpose(1, 2)

    def _hide_rest(self, nodes: torch.Tensor, is_node: torch.Tensor) -> torch.Tensor:
        return torch.where(is_node & (nodes >= 0), 0.0, self.masked)


class CudaAttention(DeviceAttention):
    """The standard operators as ONNX Runtime's CUDA provider runs them without its host.

    That provider computes with sizes on the host and copies what meets a tensor to the device, and
    a step with such a copy cannot be a CUDA graph.
    """

    fuses_skip_norm = True

    def _count_nodes(self) -> int:
        """Counts the nodes on the device: the root's row of the mask holds nothing above 0."""
        # The tracer takes this tensor like a symbolic size.
        return cast(int, (self._inputs.tree_mask[0] <= 0).sum())


class DecomposedAttention(DeviceAttention):
    """The operators of TensorRT 10.3: `ScatterND`, `MatMul` and `Softmax`.

    `ScatterND` copies the cache, so its result may not be bound to the memory it came from.
    """

    has_attention_operator = False
    updates_in_place = False
    node_opset = 18
    min_opset = 18

    def __init__(self, inputs: AttentionInputs) -> None:
        """Makes what all layers share."""
        super().__init__(inputs)
        self._angles: dict[int, list[torch.Tensor]] = {}
        batch, num_nodes = self._position_ids.shape
        num_kv_heads = inputs.cache[0].shape[1]
        shape = (batch, num_kv_heads, num_nodes, 1)
        rows = inputs.past_length[:, None] + torch.arange(num_nodes)
        indices = (
            torch.arange(batch)[:, None, None],
            torch.arange(num_kv_heads)[None, :, None],
            rows[:, None],
        )
        self._places = torch.cat([index[..., None].expand(shape) for index in indices], -1)

    def _rotate(self, states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
        if id(table) not in self._angles:
            self._angles[id(table)] = [
                nn.functional.embedding(self._position_ids, values)[:, None] for values in table
            ]
        cos, sin = self._angles[id(table)]
        return rotate(states, cos, sin)

    def _update(self, past: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._emit("ScatterND", [past, self._places, rows], {}, like=past)
