"""The engine contract: what the decode loop asks of whatever executes the graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree

TokenIds = NDArray[np.int64] | Sequence[Sequence[int]]
"""Token ids of B sequences, as many for each."""


@dataclass(frozen=True, slots=True)
class Reductions:
    """What sampling and typical acceptance need of B × R rows of logits.

    Attributes:
        sampled: (B, R) int64, the token at each row's uniform number.
        entropy: (B, R) float32, nats, of the distribution at the temperature, unfiltered.
        candidate_logprob: (B, R) float32, log-probability at the temperature of each node's own
            token under its parent's row.
    """

    sampled: NDArray[np.int64]
    entropy: NDArray[np.float32]
    candidate_logprob: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VerifyOutputs:
    """What one verify step says of the asked rows of each sequence.

    The arrays belong to the engine and are overwritten by its next step.

    Attributes:
        argmax: (B, R) int64, the most likely next token after each row's node.
        hidden: (B, R, hidden_size) float32, the backbone's last hidden state after its final
            norm, the heads' input.
        logits: (B, R, vocab_size) float32, or None unless asked for.
    """

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class Engine(Protocol):
    """Executes the graphs of one bundle, and owns the KV cache.

    The cache has `batch_size` slots of `capacity` rows, one sequence each. A step over N nodes at
    past length P writes rows P to P + N - 1 of a slot and reads the rows before P.
    """

    @property
    def capacity(self) -> int:
        """Rows of a slot, room for a step's own nodes included."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of slots."""
        ...

    @property
    def prefill_chunk(self) -> int:
        """Tokens of one prefill step, as many as it takes or less."""
        ...

    def verify(
        self,
        input_ids: TokenIds,
        tree: MedusaTree,
        past_lengths: Sequence[int],
        *,
        rows: Sequence[int] | None = None,
        first_slot: int = 0,
        logits: bool = False,
        reductions: bool = False,
    ) -> VerifyOutputs:
        """Runs the backbone over a tree's nodes for B sequences in neighbouring slots.

        Args:
            input_ids: (B, num_nodes) the nodes' tokens.
            tree: its mask and position offsets say how the nodes see each other; a chain is a
                piece of ordinary text.
            past_lengths: B numbers, the valid rows of each sequence's slot.
            rows: the nodes to report on, all of them by default.
            first_slot: the first sequence's slot.
            logits: whether the logits will be read.
            reductions: whether `reduce` will be called, for which they may stay on the device.

        Raises:
            EngineError: the nodes do not fit the cache, or the engine failed or is closed.
        """
        ...

    def reduce(
        self,
        input_ids: TokenIds,
        tree: MedusaTree,
        sampling: SamplingOptions,
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        """Reduces the logits of the last step, which must have been told of it.

        Args:
            input_ids: (B, R) the tokens of the reported nodes.
            tree: R nodes, for each node's parent.
            sampling: the distribution, at a temperature above 0.
            uniforms: (B, R) in [0, 1).
        """
        ...

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> NDArray[np.int64]:
        """Runs the heads for B sequences.

        Args:
            hidden: (B, hidden_size), the state of each sequence that its root token follows.
            root_ids: B tokens, the roots of the trees to draft; some heads read them too.

        Returns:
            (B, num_heads, top_k) int64, each head's most likely tokens, best first; valid until
            the next call.
        """
        ...

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """Moves the cache rows of the accepted nodes (of the step at `past_length`) together."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` rows of one slot into another."""
        ...

    def close(self) -> None:
        """Frees the engine; a second call does nothing."""
        ...
