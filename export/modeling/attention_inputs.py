"""Inputs and masks of attention in a traced step, common to all forms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medusa_trt.export.modeling.rotary import RotaryTable
from medusa_trt.tree_configs.tree import MASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """Tensors of one step over T nodes for B sequences.

    Attributes:
        cache: key and value of each layer in turn, (B, kv_heads, capacity, head_dim).
        tables: rotary table of each layer.
        chunks: positions in a chunk of each layer whose nodes see their own chunk alone, else None.
        past_length: (B,) int64, cached tokens of each sequence.
        position_offsets: (T,) int64, each node's depth; (B, T) if the form
            `takes_tree_per_sequence`.
        tree_mask: (T, T) float32 additive; (B, T, T) likewise.
        max_length: length of the longest sequence, in tokens.
        cache_positions: (L,) int64, 0 to L - 1: the rows of the cache that are read; None unless
            the form `reads_cache_positions`.
    """

    cache: Sequence[torch.Tensor]
    tables: Sequence[RotaryTable]
    chunks: Sequence[int | None]
    past_length: torch.Tensor
    position_offsets: torch.Tensor
    tree_mask: torch.Tensor
    max_length: int
    cache_positions: torch.Tensor | None = None

    @property
    def position_ids(self) -> torch.Tensor:
        """Position of each node, (B, T) int64, equal for siblings."""
        return self.past_length[:, None] + self.position_offsets


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Arguments of one layer's attention over T nodes.

    Attributes:
        layer: the layer's index.
        query: (B, heads, T, head_dim), without rotation in a traced step.
        key: (B, kv_heads, T, head_dim), likewise.
        value: (B, kv_heads, T, head_dim).
        scaling: factor of the scores.
        window: positions that the layer reaches back, itself included; None for all.
        chunk: positions in a chunk, where a node sees its own chunk alone; None where it does not.
        softcap: bound of the scores; None for no bound.
        sinks: (heads,) score of each head that joins the sum of its weights, or None.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    window: int | None
    chunk: int | None
    softcap: float | None
    sinks: torch.Tensor | None


def drop_idle_size(size: int | None, max_length: int) -> int | None:
    """Returns None for a window or chunk that holds the longest sequence, and hides nothing."""
    return None if size is None or size >= max_length else size


class AttentionMask:
    """Masks of one step; layers with equal windows and chunks share a mask.

    Attributes:
        whole: (B, 1, T, L) additive, for layers that see all positions.
    """

    def __init__(
        self,
        whole: torch.Tensor,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        max_length: int,
        masked: float = MASKED,
    ) -> None:
        """Takes the mask without a window, and the positions of nodes and keys.

        Args:
            whole: (B, 1, T, L) additive.
            positions: (B, T) int64 of the nodes, equal for siblings.
            key_positions: (B, L) int64.
            max_length: length of the longest sequence, in tokens.
            masked: additive value that hides a key.
        """
        self.whole = whole
        self._positions, self._key_positions = positions, key_positions
        self._max_length, self._masked = max_length, masked
        self._by_sizes: dict[tuple[int | None, int | None], torch.Tensor] = {}

    def within(self, window: int | None, chunk: int | None = None) -> torch.Tensor:
        """Returns the mask (B, 1, T, L) that also hides what a layer does not reach.

        A node does not see what is `window` positions back or more, nor what is in an earlier
        chunk of `chunk` positions than itself.

        Source: Beltagy et al. 2020, "Longformer", counted as in transformers: a node is the
        first position of its own window.
        """
        window, chunk = (drop_idle_size(size, self._max_length) for size in (window, chunk))
        if window is None and chunk is None:
            return self.whole
        if (window, chunk) not in self._by_sizes:
            mask, keys = self.whole, self._key_positions[:, None, None, :]
            positions = self._positions[:, None, :, None]
            if window is not None:
                mask = torch.where(positions - keys < window, mask, self._masked)
            if chunk is not None:
                first = positions - positions % chunk
                mask = torch.where(keys >= first, mask, self._masked)
            self._by_sizes[window, chunk] = mask
        return self._by_sizes[window, chunk]
