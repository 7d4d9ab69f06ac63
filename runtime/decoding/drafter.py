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
from medusa_trt.runtime.decoding.heads_use import HeadsUse
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.decoding.step_times import StepTimes
from medusa_trt.runtime.decoding.trials import Trials
from medusa_trt.runtime.engines.base import Drafts, Engine, StepTree, TreeBatch
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.tree_configs import MedusaTree, chain_tree
from medusa_trt.tree_configs.tree import MASKED

_NO_TOKENS: Sequence[int] = ()
_SINGLE = chain_tree(0)

_FIRST_STEPS = 64
"""Steps whose times are learned at once, one by one."""

_MAX_KEPT = 64
"""Fixed trees whose places in the candidates are kept; a server's clients may name any number."""

_STEPS_TOGETHER = 8
"""Later steps whose times are learned together: the second one costs a fifth of the first."""


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
        heads_ms: time of the heads in milliseconds at load 1; 0 if they did not run.
    """

    tree: StepTree
    trees: Sequence[AcceptedTree]
    tokens: Sequence[Sequence[int]]
    copied: Sequence[Sequence[int]]
    growth: Growth | None = None
    is_trial: bool = False
    heads_ms: float = 0.0


class Drafter:
    """Makes the trees of each step.

    Attributes:
        engine_s: seconds spent in the heads so far.
        times: step times of the engine, from which the size of grown trees follows.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        num_heads: int,
        top_k: int,
        min_nodes: int,
        times: StepTimes | None = None,
    ) -> None:
        """Prepares the arrays of grown trees, if the engine takes them and the library was built.

        Args:
            engine: runs the heads.
            num_heads: number of heads; 0 where drafts come from prompt lookup alone.
            top_k: candidates of each head.
            min_nodes: smallest number of nodes of a step.
            times: step times that were measured before.
        """
        self.engine_s = 0.0
        self.times = times or StepTimes()
        self._engine, self._top_k, self._min_nodes = engine, top_k, min_nodes
        self._has_heads = num_heads > 0
        self._trials, self._num_learned = Trials(min_nodes), 0
        self._timed: list[tuple[int, int, float, float, StepPlan]] = []
        self._grower = None
        if engine.takes_new_trees and find_library() is not None:
            self._grower = TreeGrower(
                batch_size=engine.batch_size,
                num_heads=num_heads,
                top_k=top_k,
                max_nodes=MAX_NODES,
            )
        self._heads_use = HeadsUse()
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
        return _join([parts[place] for place in range(len(states))], self._min_nodes)

    def _plan_one_tree(self, states: Sequence[SequenceState], tree: MedusaTree | None) -> StepPlan:
        return self._plan_grown(states) if tree is None else self._plan_fixed(states, tree)

    def learn(
        self, plan: StepPlan, states: Sequence[SequenceState], past: float, step_s: float
    ) -> None:
        """Takes the time of a step whose trees can grow, without the heads.

        Args:
            plan: the step's plan.
            states: its sequences.
            past: their mean number of cached tokens.
            step_s: the time in seconds.
        """
        if self._grower is None or states[0].tree is not None:
            return
        num_nodes = max(plan.tree.num_nodes, self._min_nodes)
        self._timed.append((len(states), num_nodes, past, 1e3 * step_s, plan))
        if self._num_learned >= _FIRST_STEPS and len(self._timed) < _STEPS_TOGETHER:
            return
        for count, num_nodes, past, ms, plan in self._timed:
            self.times.add(count * num_nodes, past, ms)
            ms = ms / self.times.load + plan.heads_ms
            self._trials.note_step(self.times, count, num_nodes, ms, plan.is_trial)
        self._num_learned += len(self._timed)
        self._timed.clear()

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
            ],
            self._min_nodes,
        )

    def _plan_grown(self, states: Sequence[SequenceState]) -> StepPlan:
        """Grows a tree for each, of the most profitable size or of one to be timed again."""
        assert self._grower is not None
        count, roots, least = len(states), [state.root_token for state in states], self._min_nodes
        past = sum(state.past_length for state in states) / count
        longest = max(state.past_length for state in states)
        # Times beyond twice the largest timed size are not guessed.
        known = max(least, 2 * self.times.largest // count)
        most = min(self._grower.max_nodes, self._engine.capacity - longest, known)
        trial = None if self._timed else self._trials.choose(self.times, count, most)
        if trial is not None:
            least = most = trial
        copied = [_copy_tokens(state, most - 1) for state in states]
        share = [state.record.copied_share for state in states]
        plain_ms = self.times.ms_of(count * self._min_nodes)
        drafts, heads_ms = None, 0.0
        may_draft = most > 1 and self._has_heads
        if may_draft and (trial is not None or self._heads_use.pays(copied, share, plain_ms)):
            drafts, heads_ms = self._time_heads(states, roots)
        if drafts is None and not any(copied):
            if trial is None:
                self._trials.note_best(count, self._min_nodes, count, plain_ms)
            plan = self._plan_fixed(states, _SINGLE)
            plan.is_trial = trial is not None
            return plan
        growth = self._grower.grow(
            roots,
            drafts,
            copied,
            share,
            [state.record.later_share for state in states],
            [state.record.trust for state in states],
            self.times,
            min_nodes=least,
            max_nodes=most,
            past=past,
        )
        if trial is None:
            if drafts is not None:
                self._heads_use.judge(growth, count)
            step_ms = growth.step_ms + heads_ms
            self._trials.note_best(count, growth.batch.num_nodes, growth.expected, step_ms)
        plan = StepPlan(growth.batch, growth.trees, growth.tokens, copied, growth)
        plan.is_trial, plan.heads_ms = trial is not None, heads_ms
        return plan

    def _time_heads(
        self, states: Sequence[SequenceState], roots: Sequence[int]
    ) -> tuple[Drafts, float]:
        """Runs the heads; returns also their time in milliseconds at load 1."""
        start_s = self.engine_s
        drafts = self._run_heads(states, roots)
        heads_ms = 1e3 * (self.engine_s - start_s) / self.times.load
        self._heads_use.add_time(len(states), heads_ms)
        return drafts, heads_ms

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
            while len(self._node_tokens) >= _MAX_KEPT:
                self._node_tokens.pop(next(iter(self._node_tokens)))
            select = node_tokens_from_indices(tree.tree_indices(self._top_k).tolist())
            entry = self._node_tokens[id(tree)] = tree, select
        return entry[1]


def _copy_tokens(state: SequenceState, length: int) -> Sequence[int]:
    if state.lookup is None or length < 1:
        return _NO_TOKENS
    return state.lookup.find_continuation(length) or _NO_TOKENS


def _join(parts: Sequence[tuple[StepPlan, int]], min_nodes: int) -> StepPlan:
    """Joins sequences of different plans; smaller trees are filled up with unread nodes.

    Args:
        parts: a plan for each sequence, and the index of the sequence in that plan.
        min_nodes: smallest number of nodes.
    """
    num_nodes = max(min_nodes, *(plan.tree.num_nodes for plan, _ in parts))
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
