"""The engine contract: what the decode loop asks of whatever executes the graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.tree_configs import MedusaTree


@dataclass(frozen=True, slots=True)
class VerifyOutputs:
    """What one verify step says of the asked rows.

    The arrays belong to the engine and are overwritten by its next step.

    Attributes:
        argmax: (num_rows,) int64, the most likely next token after each row's node.
        hidden: (num_rows, hidden_size) float32, the backbone's last hidden state after its final
            norm, the heads' input.
        logits: (num_rows, vocab_size) float32, or None unless asked for.
    """

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class Engine(Protocol):
    """Executes the verify graph and the heads graph of one bundle, and owns the KV cache.

    The cache holds `capacity` rows. A step over N nodes at `past_length` P writes rows P to
    P + N - 1 and reads the rows before P; it may also write row P + 1 when N is 1.
    """

    @property
    def capacity(self) -> int:
        """Rows of the KV cache, room for a step's own nodes included."""
        ...

    def verify(
        self,
        input_ids: NDArray[np.int64],
        tree: MedusaTree,
        past_length: int,
        *,
        rows: Sequence[int] | None = None,
        logits: bool = False,
    ) -> VerifyOutputs:
        """Runs the backbone over a tree's nodes after `past_length` cached tokens.

        Args:
            input_ids: (num_nodes,) the nodes' tokens.
            tree: its mask and position offsets say how the nodes see each other; a chain is a
                piece of ordinary text.
            past_length: number of valid rows in the cache.
            rows: the nodes to report on, all of them by default.
            logits: whether to bring the full logits to the host.

        Raises:
            EngineError: the nodes do not fit the cache, or the engine failed or is closed.
        """
        ...

    def draft(self, hidden: NDArray[np.float32]) -> NDArray[np.int64]:
        """Runs the heads on one hidden state (hidden_size,).

        Returns:
            (num_heads, top_k) int64, each head's most likely tokens, best first; valid until the
            next call.
        """
        ...

    def commit(self, past_length: int, nodes: Sequence[int]) -> None:
        """Moves the cache rows of the accepted nodes (of the step at `past_length`) together."""
        ...

    def close(self) -> None:
        """Frees the engine; a second call does nothing."""
        ...
