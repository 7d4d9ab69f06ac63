"""The engine contract: what the decode loop needs from the program that runs the graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree

TokenIds = NDArray[np.int64] | Sequence[Sequence[int]]
"""Token ids of B sequences of the same length, (B, N)."""


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """A tree of N nodes for each of B sequences, for a single step; see `MedusaTree`.

    Attributes:
        parents: (B, N) int64, the parent of each node; -1 for the root.
        position_offsets: (B, N) int64, depth of each node.
        additive_mask: (B, N, N) float32, 0 where a node sees another and `MASKED` elsewhere.
        is_kept: whether the trees of other steps stand in the same object and memory later. An
            engine may read them there instead of copying them.
    """

    parents: NDArray[np.int64]
    position_offsets: NDArray[np.int64]
    additive_mask: NDArray[np.float32]
    is_kept: bool = False

    @property
    def num_nodes(self) -> int:
        """Number of nodes of each tree."""
        return len(self.parents[0])


StepTree = MedusaTree | TreeBatch
"""The tree of all sequences of a step, or one for each."""


class Drafts(NamedTuple):
    """Candidates of the heads for B sequences; valid until the engine's next `draft`.

    Attributes:
        ids: (B, num_heads, top_k) int64, each head's most likely tokens, the likeliest first.
        logprobs: (B, num_heads, top_k) float32, their log-probabilities in the head's distribution;
            None if the heads graph of the bundle does not compute them.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Reductions:
    """Reduction of B × R rows of logits to what sampling and typical acceptance need.

    Attributes:
        sampled: (B, R) int64, the token that each row's uniform number selects.
        entropy: (B, R) float32, in nats, of the distribution at the temperature, without filters.
        candidate_logprob: (B, R) float32, log-probability of each node's token in its parent's row,
            at the temperature.
    """

    sampled: NDArray[np.int64]
    entropy: NDArray[np.float32]
    candidate_logprob: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VerifyOutputs:
    """Outputs of one verify step for the requested rows of each sequence.

    The arrays belong to the engine and are overwritten by its next step.

    Attributes:
        argmax: (B, R) int64, the most likely next token after each row's node.
        hidden: (B, R, hidden_size) float32, the backbone's last hidden state after its final
            norm; the heads read it.
        logits: (B, R, vocab_size) float32, or None if they were not requested.
    """

    argmax: NDArray[np.int64]
    hidden: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class RowCache(Protocol):
    """The rows of an engine's KV cache."""

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        """Makes the accepted nodes' rows contiguous after `past_length`.

        Args:
            slot: the sequence's slot.
            past_length: number of valid rows before the step.
            nodes: the accepted nodes, increasing from the root; row
                `past_length + nodes[i]` becomes row `past_length + i`.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` rows of one slot into another."""
        ...

    def exchange(self, first: int, second: int, length: int) -> None:
        """Exchanges the first `length` rows of two slots."""
        ...


class Engine(Protocol):
    """Runs the graphs of one bundle, and owns the KV cache.

    The cache has `batch_size` slots of `capacity` rows; each slot holds one sequence. A step over
    N nodes at past length P writes rows P to P + N - 1 of a slot and reads the rows before P.

    Attributes:
        capacity: number of rows in a slot, including room for the nodes of a step.
        batch_size: number of slots.
        prefill_chunk: largest number of tokens in one prefill step.
        takes_new_trees: whether `verify` takes a `TreeBatch`, and its drafts have
            log-probabilities.
    """

    capacity: int
    batch_size: int
    prefill_chunk: int
    takes_new_trees: bool

    @property
    def cache(self) -> RowCache:
        """The KV cache."""
        ...

    def verify(
        self,
        input_ids: TokenIds,
        tree: StepTree,
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
            tree: its mask and position offsets say which nodes attend to which; a chain is
                ordinary text. A `TreeBatch` needs `takes_new_trees`.
            past_lengths: number of valid rows in each of the B sequences' slots.
            rows: nodes to return outputs for; all nodes by default.
            first_slot: slot of the first sequence.
            logits: whether to return the logits.
            reductions: whether `reduce` will be called; the logits may then stay on the device.

        Raises:
            EngineError: the nodes do not fit into the cache, or the engine failed or is closed.
        """
        ...

    def reduce(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        samplings: Sequence[SamplingOptions],
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        """Reduces the logits of the last `verify`, which was called with `reductions=True`.

        Args:
            input_ids: (B, R) the tokens of the nodes that the last step returned outputs for.
            tree: R nodes; their parents are read.
            samplings: the distribution of each sequence. Where the temperature is 0 nothing is
                reduced, and the outputs mean nothing.
            uniforms: (B, R) in [0, 1).
        """
        ...

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        """Runs the heads for B sequences.

        Args:
            hidden: (B, hidden_size), for each sequence the hidden state before its root token.
            root_ids: B tokens, the roots of the trees to draft; some heads read them.
        """
        ...

    def close(self) -> None:
        """Frees the engine; a second call does nothing."""
        ...
