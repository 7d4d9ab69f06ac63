"""Trees grown at each step: the likeliest nodes first, and as many as pay.

The heads' probabilities are calibrated (docs/decisions/decoding.md), so the product along a path
estimates the probability that its last node is accepted, and the sum over nodes the number of
tokens that a step adds. The number of nodes has the most tokens per second, by the step times
that were measured.
"""

from array import array
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.decoding.step_times import StepTimes
from medusa_trt.runtime.engines.base import Drafts, TreeBatch
from medusa_trt.runtime.engines.operators import load_function

MAX_NODES = 32
"""Largest number of nodes of a grown tree."""

_NO_ADDRESS = 0

_Views = tuple[TreeBatch, list[NDArray[np.int64]], Any, Any]
"""The trees of a step, and the offsets of each, the tokens and the children."""


@dataclass(slots=True, eq=False)
class GrownTree:
    """The part of one grown tree that acceptance reads; see `MedusaTree`.

    Attributes:
        child_ranges: first child of each node, and the node after its last child.
        position_offsets: (N,) int64, depth of each node.
    """

    child_ranges: Sequence[Sequence[int]]
    position_offsets: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Growth:
    """The trees of a step.

    Attributes:
        batch: the trees as inputs of the engine.
        trees: the tree of each sequence, which acceptance reads.
        tokens: N tokens of each sequence.
        gains: number of drafts of each sequence that are expected to be accepted if `trust` is 1.
        expected: number of tokens that the step is expected to add, over all sequences.
        step_ms: estimated time of the step.
        plain_ms: estimated time of a step without drafts.
    """

    batch: TreeBatch
    trees: list[GrownTree]
    tokens: list[list[int]]
    gains: Sequence[float]
    expected: float
    step_ms: float
    plain_ms: float


class TreeGrower:
    """Grows the trees of a step by the operator library (`native/draft_trees.h`)."""

    def __init__(self, *, batch_size: int, num_heads: int, top_k: int, max_nodes: int) -> None:
        """Allocates the arrays for up to `batch_size` sequences of `max_nodes` nodes."""
        function = load_function("grow")
        assert function is not None
        self._function = function
        self.max_nodes = max_nodes
        self._roots, self._num_copied = array("q", [0] * batch_size), array("q", [0] * batch_size)
        self._copied = array("q", [0] * (batch_size * max_nodes))
        self._copied_share, self._later_share, self._trust, self._gains = (
            array("d", [0.0] * batch_size) for _ in range(4)
        )
        flat = batch_size * max_nodes
        self._tokens, self._parents, self._depths = np.zeros((3, flat), np.int64)
        self._children = np.zeros(2 * flat, np.int64)
        self._mask = np.zeros(flat * max_nodes, np.float32)
        self._block = array("q", [0] * _Field.COUNT)
        self._doubles = memoryview(self._block).cast("B").cast("d")
        self._address = c_void_p(self._block.buffer_info()[0])
        for field, values in (
            (_Field.ROOTS, self._roots),
            (_Field.COPIED, self._copied),
            (_Field.NUM_COPIED, self._num_copied),
            (_Field.COPIED_SHARE, self._copied_share),
            (_Field.LATER_SHARE, self._later_share),
            (_Field.TRUST, self._trust),
            (_Field.GAINS, self._gains),
        ):
            self._block[field] = values.buffer_info()[0]
        for field, buffer in (
            (_Field.TOKENS, self._tokens),
            (_Field.PARENTS, self._parents),
            (_Field.DEPTHS, self._depths),
            (_Field.CHILDREN, self._children),
            (_Field.MASK, self._mask),
        ):
            self._block[field] = buffer.ctypes.data
        self._block[_Field.HEADS], self._block[_Field.TOP_K] = num_heads, top_k
        self._block[_Field.MAX_COPIED] = max_nodes
        self._times: StepTimes | None = None
        self._drafts: Drafts | None = None
        self._views: dict[tuple[int, int], _Views] = {}

    def grow(
        self,
        roots: Sequence[int],
        drafts: Drafts | None,
        copied: Sequence[Sequence[int]],
        copied_share: Sequence[float],
        later_share: Sequence[float],
        trust: Sequence[float],
        times: StepTimes,
        *,
        min_nodes: int,
        max_nodes: int,
        past: float,
    ) -> Growth:
        """Grows a tree for each of B sequences, all with the same number of nodes.

        Args:
            roots: the root tokens.
            drafts: the heads' candidates with log-probabilities; None without heads.
            copied: tokens that may follow each root, from prompt lookup; may be empty.
            copied_share: probability that the first copied token is right, for each sequence.
            later_share: probability that a later one is right if those before it are.
            trust: accepted drafts divided by expected ones so far, for each sequence.
            times: step times by rows.
            min_nodes: least number of nodes.
            max_nodes: largest number of nodes, at most `self.max_nodes`.
            past: cached tokens of a sequence, on average.
        """
        count, block = len(roots), self._block
        for index, tokens in enumerate(copied):
            self._roots[index], self._trust[index] = roots[index], trust[index]
            self._copied_share[index], self._later_share[index] = (
                copied_share[index],
                later_share[index],
            )
            self._num_copied[index] = length = min(len(tokens), max_nodes)
            if length:
                begin = index * self.max_nodes
                self._copied[begin : begin + length] = array("q", tokens[:length])
        if drafts is not self._drafts or drafts is None:
            self._drafts = drafts
            ids = logprobs = _NO_ADDRESS
            if drafts is not None and drafts.logprobs is not None:
                ids, logprobs = drafts.ids.ctypes.data, drafts.logprobs.ctypes.data
            block[_Field.IDS], block[_Field.LOGPROBS] = ids, logprobs
        if times is not self._times:
            self._times = times
            for field, values in (
                (_Field.POINT_ROWS, times.rows),
                (_Field.POINT_MS, times.ms),
                (_Field.POINT_PAST, times.past),
            ):
                block[field] = values.buffer_info()[0]
        block[_Field.NUM_POINTS] = times.num_points
        self._doubles[_Field.PAST_MS] = times.past_ms
        block[_Field.SEQUENCES] = count
        block[_Field.MIN_NODES], block[_Field.MAX_NODES] = min_nodes, max_nodes
        self._doubles[_Field.PAST] = past
        self._function(self._address)
        batch, offsets, tokens_view, children_view = self._views_of(count, block[_Field.NODES])
        trees = [GrownTree(*parts) for parts in zip(children_view.tolist(), offsets, strict=True)]
        expected, step_ms, plain_ms = self._doubles[_Field.EXPECTED : _Field.GAINS]
        gains = self._gains[:count]
        return Growth(batch, trees, tokens_view.tolist(), gains, expected, step_ms, plain_ms)

    def _views_of(self, count: int, num_nodes: int) -> _Views:
        """Views of the outputs for this number of sequences and nodes, made once."""
        views = self._views.get((count, num_nodes))
        if views is None:
            size = count * num_nodes
            tokens, parents, depths = (
                flat[:size].reshape(count, num_nodes)
                for flat in (self._tokens, self._parents, self._depths)
            )
            mask = self._mask[: size * num_nodes].reshape(count, num_nodes, num_nodes)
            children = self._children[: 2 * size].reshape(count, num_nodes, 2)
            batch = TreeBatch(parents, depths, mask, is_kept=True)
            views = batch, list(depths), tokens, children
            self._views[count, num_nodes] = views
        return views


class _Field:
    """Index of each field of `medusa::DraftTrees`."""

    (
        SEQUENCES,
        HEADS,
        TOP_K,
        MAX_COPIED,
        MIN_NODES,
        MAX_NODES,
        IDS,
        LOGPROBS,
        ROOTS,
        COPIED,
        NUM_COPIED,
        COPIED_SHARE,
        LATER_SHARE,
        TRUST,
        NUM_POINTS,
        POINT_ROWS,
        POINT_MS,
        POINT_PAST,
        PAST,
        PAST_MS,
        NODES,
        EXPECTED,
        STEP_MS,
        PLAIN_MS,
        GAINS,
        TOKENS,
        PARENTS,
        DEPTHS,
        CHILDREN,
        MASK,
        COUNT,
    ) = range(31)
