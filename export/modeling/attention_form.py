"""The base class of every form of attention that a verify graph can be traced with."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import nn

from medusa_trt.export.modeling.attention_inputs import (
    AttentionCall,
    AttentionInputs,
    AttentionMask,
)


class AttentionForm(ABC):
    """Attention and cache update of one traced step, called once for each layer.

    An instance is made for each step. The class attributes tell what a form can do and how its
    graph differs from those of other forms.

    Attributes:
        takes_batch: whether it takes several sequences; if not, they need a graph of another form.
        takes_tree_per_sequence: whether tree mask and position offsets have a batch axis.
        uses_library: whether its graph needs the operator library.
        is_portable: whether its graph keeps to standard operators and computes in one type.
        fuses_skip_norm: whether residual additions are fused with norms in a portable graph.
        reads_cache_positions: whether the graph takes `cache_positions`, whose length says how many
            rows of the cache are read.
        has_position_per_row: whether the rotary tables need a position for each row of the cache,
            where tree nodes of equal depth have separate rows.
        updates_in_place: whether an updated cache may be bound to the memory of the old one.
        min_rows: smallest number of nodes of a step; see `TargetSpec`.
        cache_dtype: type of the KV cache; None for the type of the computation.
        node_opset: opset of the operators that it emits.
        min_opset: least opset of the finished graph, which may be newer than the one that the
            exporter fuses norms at.
        mask: the attention mask of the step.
        presents: updated key and value caches of the layers that were called.
    """

    takes_batch: ClassVar[bool] = True
    takes_tree_per_sequence: ClassVar[bool] = False
    uses_library: ClassVar[bool] = False
    is_portable: ClassVar[bool] = False
    fuses_skip_norm: ClassVar[bool] = False
    reads_cache_positions: ClassVar[bool] = False
    has_position_per_row: ClassVar[bool] = False
    updates_in_place: ClassVar[bool] = True
    min_rows: ClassVar[int] = 1
    cache_dtype: ClassVar[Literal["bfloat16"] | None] = None
    node_opset: ClassVar[int] = 1
    min_opset: ClassVar[int] = 1

    def __init__(self, inputs: AttentionInputs) -> None:
        """Makes what all layers share."""
        self._inputs, self._position_ids = inputs, inputs.position_ids
        self.presents: list[torch.Tensor] = []
        self.mask = self._make_mask()

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
        s_aux: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Implements transformers' attention interface; see `AttentionCall`.

        `attention_mask` is not read, because `mask` stands for it.

        Returns:
            (B, T, heads, head_dim), and no weights.
        """
        layer = module.layer_idx
        assert isinstance(layer, int)
        call = AttentionCall(
            layer,
            query,
            key,
            value,
            float(scaling),
            window=sliding_window,
            chunk=self._inputs.chunks[layer],
            softcap=None if softcap is None else float(softcap),
            sinks=s_aux,
        )
        return self._attend(call), None

    @abstractmethod
    def _make_mask(self) -> AttentionMask:
        """Makes the mask of the step."""

    @abstractmethod
    def _attend(self, call: AttentionCall) -> torch.Tensor:
        """Rotates, updates the cache and attends; adds to `presents`; see `__call__`."""

    def _get_cache(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a layer's cached keys and values."""
        key, value = self._inputs.cache[2 * layer : 2 * layer + 2]
        return key, value
