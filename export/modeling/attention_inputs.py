"""What attention reads in a step, whichever operators compute it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medusa_trt.export.modeling.rotary import RotaryTable


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """Tensors of one step over T nodes for B sequences.

    Attributes:
        cache: key and value of each layer in turn, (B, kv_heads, capacity, head_dim).
        tables: of each layer.
        past_length: (B,) int64.
        position_offsets: (T,) int64, each node's depth.
        tree_mask: (T, T) float32 additive.
        max_length: the longest sequence.
        cache_positions: (L,) int64, 0 to L - 1: the rows of the cache that are read, where the
            form reads it on a device.
    """

    cache: Sequence[torch.Tensor]
    tables: Sequence[RotaryTable]
    past_length: torch.Tensor
    position_offsets: torch.Tensor
    tree_mask: torch.Tensor
    max_length: int
    cache_positions: torch.Tensor | None = None

    @property
    def position_ids(self) -> torch.Tensor:
        """(B, T) int64: siblings share one."""
        return self.past_length[:, None] + self.position_offsets


class AttentionMask:
    """Masks of one step, each made once whichever layers ask for it.

    Attributes:
        whole: (B, 1, T, L) additive, of a layer that sees a node's whole path.
    """

    def __init__(
        self,
        whole: torch.Tensor,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        max_length: int,
        masked: float,
    ) -> None:
        """Takes the mask without a window, and where nodes and keys are in their texts.

        Args:
            whole: (B, 1, T, L) additive.
            positions: (B, T) int64 of the nodes: of siblings they are equal.
            key_positions: (B, L) int64.
            max_length: the longest sequence; a window that reaches over all of it is none.
            masked: the value that hides.
        """
        self.whole = whole
        self._positions, self._key_positions = positions, key_positions
        self._max_length, self._masked = max_length, masked
        self._cut: dict[int, torch.Tensor] = {}

    def within(self, window: int | None) -> torch.Tensor:
        """(B, 1, T, L): a node also sees nothing that is `window` positions back or more.

        Source: Beltagy et al. 2020, "Longformer", as transformers counts: a node is the first
        position of its own window.
        """
        if window is None or window >= self._max_length:
            return self.whole
        if window not in self._cut:
            distance = self._positions[:, None, :, None] - self._key_positions[:, None, None, :]
            self._cut[window] = torch.where(distance < window, self.whole, self._masked)
        return self._cut[window]
