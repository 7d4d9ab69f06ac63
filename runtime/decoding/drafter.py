"""Makes the trees of a step: fixed ones, copied chains, or trees grown for this step."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from medusa_trt.runtime.decoding.acceptance import AcceptedTree
from medusa_trt.runtime.decoding.cached_views import CachedViews, view_integers
from medusa_trt.runtime.decoding.drafting import (
    NodeTokens,
    node_tokens_from_indices,
    tokens_from_candidates,
)
from medusa_trt.runtime.decoding.growth import MAX_NODES, Growth, TreeGrower
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.decoding.step_times import StepTimes
from medusa_trt.runtime.engines.base import Drafts, Engine, StepTree, TreeBatch
from medusa_trt.tree_configs import MedusaTree, chain_tree
from medusa_trt.tree_configs.tree import MASKED

_TRIED_NODES = (1, 2, 4, 8, 16, 32)
"""Numbers of nodes whose step times are measured first."""

_CLEARLY_WORSE = 0.85
"""Share of the best expected tokens per second, below which no larger trees are tried."""

_LONGEST_REST = 32
"""Most steps without heads, after steps in which they did not pay, before they are tried again."""

_GAIN_WEIGHT = 0.1
"""Weight of a new step in the running mean of the heads' gain."""

_NO_TOKENS: Sequence[int] = ()


@dataclass(slots=True)
class StepPlan:
    """The trees and tokens of one step for B sequences.

    Attributes:
        tree: the tree or trees as input of the engine.
        trees: the tree of each sequence, which acceptance reads.
        tokens: N tokens of each sequence.
        copied: copied tokens of each sequence, which may be in its tree or not.
        growth: the grown trees; None if the trees were fixed.
        is_trial: whether their size was chosen to measure its step time.
    """

    tree: StepTree
    trees: Sequence[AcceptedTree]
    tokens: Sequence[Sequence[int]]
    copied: Sequence[Sequence[int]]
    growth: Growth | None = None
    is_trial: bool = False


class Drafter:
    """Makes the trees of each step.

    Attributes:
        engine_s: seconds spent in the heads so far.
        times: step times of the engine, from which the size of grown trees follows.
    """

    def __init__(self, engine: Engine, *, num_heads: int, top_k: int, min_nodes: int) -> None:
        """Prepares the arrays of grown trees, if the engine takes them.

        Args:
            engine: runs the heads.
            num_heads: number of heads; 0 where drafts come from prompt lookup alone.
            top_k: candidates of each head.
            min_nodes: smallest number of nodes of a step.
        """
        self.engine_s = 0.0
        self.times = StepTimes()
        self._engine, self._top_k, self._min_nodes = engine, top_k, min_nodes
        self._has_heads = num_heads > 0
        self._tried: dict[int, list[float]] = {}
        self._grower = None
        if engine.takes_new_trees:
            self._grower = TreeGrower(
                batch_size=engine.batch_size,
                num_heads=num_heads,
                top_k=top_k,
                max_nodes=MAX_NODES,
            )
        self._heads_times, self._heads_gain = StepTimes(), 1.0
        self._rest = self._rest_length = self._num_skipped = 0
        self._draft_ids = CachedViews(view_integers)
        self._node_tokens: dict[int, tuple[MedusaTree, NodeTokens]] = {}

    @property
    def grows_trees(self) -> bool:
        """Whether sequences without a tree of their own can be stepped."""
        return self._grower is not None

    def plan(self, states: Sequence[SequenceState]) -> StepPlan:
        """Makes the trees of a step; runs the heads if they are needed.

        On an engine that does not take new trees, all sequences have the same fixed tree.
        """
        first = states[0].tree
        if all(state.tree is first for state in states):
            return self._plan_one_tree(states, first)
        parts: dict[int, tuple[StepPlan, int]] = {}
        for tree in {id(state.tree): state.tree for state in states}.values():
            places = [place for place, state in enumerate(states) if state.tree is tree]
            plan = self._plan_one_tree([states[place] for place in places], tree)
            parts |= {place: (plan, index) for index, place in enumerate(places)}
        return _join([parts[place] for place in range(len(states))])

    def _plan_one_tree(self, states: Sequence[SequenceState], tree: MedusaTree | None) -> StepPlan:
        return self._plan_grown(states) if tree is None else self._plan_fixed(states, tree)

    def learn(
        self, plan: StepPlan, states: Sequence[SequenceState], past: float, step_s: float
    ) -> None:
        """Takes the time of the engine's step; `past` is the mean number of cached tokens."""
        if self._grower is None:
            return
        rows, ms = len(states) * plan.tree.num_nodes, 1e3 * step_s
        self.times.add(rows, past, ms)
        if plan.is_trial and plan.growth is not None:
            sums = self._tried.setdefault(rows, [0.0, 0.0])
            sums[0] += plan.growth.expected
            sums[1] += ms

    def _plan_fixed(self, states: Sequence[SequenceState], tree: MedusaTree) -> StepPlan:
        """One fixed tree for all; where tokens can be copied, a chain of as many nodes."""
        num_nodes = tree.num_nodes
        roots = [state.root_token for state in states]
        if num_nodes == 1:
            nothing = [_NO_TOKENS] * len(states)
            return StepPlan(tree, [tree] * len(states), [[token] for token in roots], nothing)
        copied = [_copy_tokens(state, num_nodes - 1) for state in states]
        num_copying = sum(map(bool, copied))
        chain = chain_tree(num_nodes - 1)
        if num_copying == len(states):
            chains = [[root, *tokens] for root, tokens in zip(roots, copied, strict=True)]
            return StepPlan(chain, [chain] * len(states), chains, copied)
        if self._has_heads:
            candidates = self._draft_ids.get(self._run_heads(states, roots).ids)
            tokens = tokens_from_candidates(roots, candidates, self._select(tree))
        else:
            tree, tokens = chain_tree(0), [[root] for root in roots]
        if not num_copying or not self._engine.takes_new_trees:
            return StepPlan(tree, [tree] * len(states), tokens, [_NO_TOKENS] * len(states))
        return _join(
            [
                (StepPlan(chain, [chain], [[roots[index], *copied[index]]], [copied[index]]), 0)
                if copied[index]
                else (StepPlan(tree, [tree], [tokens[index]], [_NO_TOKENS]), 0)
                for index in range(len(states))
            ]
        )

    def _plan_grown(self, states: Sequence[SequenceState]) -> StepPlan:
        """A new tree for each; its size is the one that pays most, or one still to be measured."""
        assert self._grower is not None
        count, roots = len(states), [state.root_token for state in states]
        past = sum(state.past_length for state in states) / count
        longest = max(state.past_length for state in states)
        most = min(self._grower.max_nodes, self._engine.capacity - longest)
        sizes = [size for size in _TRIED_NODES if self._min_nodes <= size <= most]
        untried, least = self._find_untried(sizes, count), self._min_nodes
        if untried is not None:
            least = most = untried
        copied = [_copy_tokens(state, most - 1) for state in states]
        share = [state.record.copied_share for state in states]
        drafts = None
        if most > 1 and self._has_heads and self._heads_pay(copied, share, untried is not None):
            start = self.engine_s
            drafts = self._run_heads(states, roots)
            self._heads_times.add(count, past, 1e3 * (self.engine_s - start))
        growth = self._grower.grow(
            roots,
            drafts,
            copied,
            share,
            [state.record.trust for state in states],
            self.times,
            min_nodes=least,
            max_nodes=most,
            past=past,
        )
        if drafts is not None and untried is None:
            self._judge_heads(growth, count)
        plan = StepPlan(growth.batch, growth.trees, growth.tokens, copied, growth)
        plan.is_trial = untried is not None
        return plan

    def _find_untried(self, sizes: Sequence[int], count: int) -> int | None:
        """Finds the first number of nodes whose steps are still to be timed, if there is one.

        Larger trees add ever fewer tokens for their time. So none is tried after one that was
        clearly worse than a smaller one.
        """
        best = 0.0
        for size in sizes:
            if not self.times.is_timed(count * size):
                return size
            expected, ms = self._tried.get(count * size, (0.0, 0.0))
            if ms and expected / ms < _CLEARLY_WORSE * best:
                return None
            best = max(best, expected / ms if ms else 0.0)
        return None

    def _heads_pay(
        self, copied: Sequence[Sequence[int]], share: Sequence[float], is_measuring: bool
    ) -> bool:
        """Whether to run the heads: not while they rest, nor beside copies likely to be right."""
        if is_measuring or self._num_skipped >= _LONGEST_REST:
            self._rest = self._num_skipped = 0
            return True
        self._num_skipped += 1
        if self._rest:
            self._rest -= 1
            return False
        doubt = sum(
            1.0 - part if tokens else 1.0 for tokens, part in zip(copied, share, strict=True)
        ) / len(copied)
        count = len(copied)
        plain_ms = self.times.ms_of(count * self._min_nodes)
        pays = doubt * self._heads_gain * plain_ms > self._heads_times.ms_of(count)
        if pays:
            self._num_skipped = 0
        return pays

    def _judge_heads(self, growth: Growth, count: int) -> None:
        """Lets the heads rest if plain decoding would have been faster with the time they took."""
        gain = (growth.expected - count) / count
        self._heads_gain += _GAIN_WEIGHT * (gain - self._heads_gain)
        with_heads = growth.expected / (growth.step_ms + self._heads_times.ms_of(count))
        if with_heads >= count / growth.plain_ms:
            self._rest_length = 0
            return
        self._rest_length = min(_LONGEST_REST, 2 * self._rest_length + 1)
        self._rest = self._rest_length

    def _run_heads(self, states: Sequence[SequenceState], roots: Sequence[int]) -> Drafts:
        start = perf_counter()
        hidden = [state.hidden for state in states if state.hidden is not None]
        drafts = self._engine.draft(
            hidden[0] if len(hidden) == 1 else np.concatenate(hidden), roots
        )
        self.engine_s += perf_counter() - start
        return drafts

    def _select(self, tree: MedusaTree) -> NodeTokens:
        """Returns the function that puts candidates on the nodes of a fixed tree."""
        entry = self._node_tokens.get(id(tree))
        if entry is None:
            select = node_tokens_from_indices(tree.tree_indices(self._top_k).tolist())
            entry = self._node_tokens[id(tree)] = tree, select
        return entry[1]


def _copy_tokens(state: SequenceState, length: int) -> Sequence[int]:
    if state.lookup is None or length < 1:
        return _NO_TOKENS
    return state.lookup.find_continuation(length) or _NO_TOKENS


def _join(parts: Sequence[tuple[StepPlan, int]]) -> StepPlan:
    """Joins sequences of different plans; smaller trees are filled up with unread nodes.

    Args:
        parts: a plan for each sequence, and the index of the sequence in that plan.
    """
    num_nodes = max(plan.tree.num_nodes for plan, _ in parts)
    nodes = np.arange(num_nodes)
    parents = np.zeros((len(parts), num_nodes), np.int64)
    offsets = np.tile(np.minimum(nodes, 1), (len(parts), 1))
    mask = np.full((len(parts), num_nodes, num_nodes), MASKED, np.float32)
    mask[:, nodes, nodes] = 0
    mask[:, :, 0] = 0
    tokens = []
    for place, (plan, index) in enumerate(parts):
        tree, size = plan.tree, plan.tree.num_nodes
        one = index if isinstance(tree, TreeBatch) else ...
        parents[place, :size] = tree.parents[one]
        offsets[place, :size] = tree.position_offsets[one]
        mask[place, :size, :size] = tree.additive_mask[one]
        ids = plan.tokens[index]
        tokens.append([*ids, *[ids[0]] * (num_nodes - size)])
    return StepPlan(
        TreeBatch(parents, offsets, mask),
        [plan.trees[index] for plan, index in parts],
        tokens,
        [plan.copied[index] for plan, index in parts],
    )
