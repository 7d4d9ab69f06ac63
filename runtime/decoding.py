"""The decode loop over tokens: prefill, then draft, verify, accept and commit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.acceptance import accept_exact
from medusa_trt.runtime.choosing import Chooser, TokenLogprobs
from medusa_trt.runtime.drafting import (
    TokenLookup,
    node_tokens_from_indices,
    tokens_from_candidates,
)
from medusa_trt.runtime.engines.base import Engine, Reductions, VerifyOutputs
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree, chain_tree

_SINGLE = chain_tree(0)
_Made = TypeVar("_Made")


@dataclass(slots=True)
class SequenceState:
    """One sequence in a slot: what the next step starts from.

    Attributes:
        slot: the engine's slot that holds its cache rows.
        past_length: valid rows there.
        root_token: the token decided last, not yet in the cache.
        hidden: (1, hidden_size) the state that the heads draft from.
        chooser: its acceptance and random numbers.
        lookup: its tokens, where they may be copied as drafts.
    """

    slot: int
    past_length: int
    root_token: int
    hidden: NDArray[np.float32]
    chooser: Chooser
    lookup: TokenLookup | None = None


Added = tuple[list[int], tuple[TokenLogprobs, ...]]
"""Tokens that a step adds to one sequence, the last one being the next step's root, and their
log-probabilities if asked for. No class: to make an object between two engine calls takes 5 us."""


class PrefillCancelled(Exception):
    """A prefill was ended between two of its chunks."""


class Decoder:
    """Steps sequences of one tree and one distribution together on an engine."""

    def __init__(
        self,
        engine: Engine,
        tree: MedusaTree,
        sampling: SamplingOptions,
        *,
        top_k: int,
        min_rows: int,
        prefill_chunk: int,
        lookup_ngram: int = 0,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares the index arrays of the tree.

        Args:
            engine: runs the graphs.
            tree: the draft tree.
            sampling: the distribution, for all sequences.
            top_k: candidates of each head.
            min_rows: smallest step of the engine; a smaller tree is followed by unread rows.
            prefill_chunk: tokens of one prefill step.
            lookup_ngram: where as many last tokens of each sequence occurred before in it, a step
                drafts a chain of what followed them, with as many nodes as the tree; 0 for never.
            is_cancelled: asked before each prefill step.
        """
        self.engine_s = 0.0
        self._engine = engine
        self._tree = tree
        self._chain = chain_tree(tree.num_nodes - 1)
        self._lookup_ngram = lookup_ngram if tree.num_nodes > 1 else 0
        self._sampling = sampling
        self._node_tokens = node_tokens_from_indices(tree.tree_indices(top_k).tolist())
        self._prefill_chunk, self._is_cancelled = prefill_chunk, is_cancelled
        self._min_rows = min_rows
        num_unread = max(0, min_rows - tree.num_nodes)
        self._rows = tuple(range(tree.num_nodes)) if num_unread else None
        self._draft_ids = _Kept(_integers)
        self._argmax = _Kept(_integers)
        self._hidden = _Kept(_states)

    def start(
        self, slot: int, prompt_ids: Sequence[int], num_cached: int, chooser: Chooser
    ) -> tuple[SequenceState, Added]:
        """Prefills a prompt, of which `num_cached` tokens are in the slot, and adds one token.

        Raises:
            PrefillCancelled: `is_cancelled` became true.
        """
        last = len(prompt_ids) - 1
        for start in range(num_cached, len(prompt_ids), self._prefill_chunk):
            if self._is_cancelled():
                raise PrefillCancelled
            ids = np.array(prompt_ids[start : start + self._prefill_chunk], np.int64)
            chunk = self._padded(chain_tree(len(ids) - 1))
            outputs = self._engine.verify(
                np.resize(ids, (1, chunk.num_nodes)),
                chunk,
                [start],
                rows=(len(ids) - 1,),
                first_slot=slot,
                logits=chooser.walks_logits,
                reductions=chooser.needs_reductions,
            )
        lookup = TokenLookup(prompt_ids, self._lookup_ngram) if self._lookup_ngram else None
        root_token, hidden = prompt_ids[last], outputs.hidden[0]
        state = SequenceState(slot, last, root_token, hidden, chooser, lookup)
        tokens = [[state.root_token]]
        return state, self._accept([state], _SINGLE, tokens, outputs)[0]

    def step(self, states: Sequence[SequenceState]) -> list[Added]:
        """Advances the sequences in slots 0 to B - 1 by one verify step."""
        tree, tokens = self._drafts(states)
        step_tree, step_tokens = tree, tokens
        if self._rows is not None:
            step_tree = self._padded(tree)
            num_unread = step_tree.num_nodes - tree.num_nodes
            step_tokens = [[*own, *[own[-1]] * num_unread] for own in tokens]
        first = states[0].chooser
        past_lengths = [state.past_length for state in states]
        start = perf_counter()
        outputs = self._engine.verify(
            step_tokens,
            step_tree,
            past_lengths,
            rows=self._rows,
            logits=first.walks_logits,
            reductions=first.needs_reductions,
        )
        self.engine_s += perf_counter() - start
        return self._accept(states, tree, tokens, outputs)

    def _drafts(
        self, states: Sequence[SequenceState]
    ) -> tuple[MedusaTree, Sequence[Sequence[int]]]:
        """The tree of this step, and for each sequence the tokens of its nodes."""
        root_tokens = [state.root_token for state in states]
        if self._tree.num_nodes == 1:
            return self._tree, [[token] for token in root_tokens]
        if self._lookup_ngram:
            copied = self._copied(states)
            if copied is not None:
                return self._chain, copied
        start = perf_counter()
        drafts = self._engine.draft(
            states[0].hidden if len(states) == 1 else np.concatenate([s.hidden for s in states]),
            root_tokens,
        )
        self.engine_s += perf_counter() - start
        candidates = self._draft_ids.of(drafts)
        return self._tree, tokens_from_candidates(root_tokens, candidates, self._node_tokens)

    def _copied(self, states: Sequence[SequenceState]) -> list[list[int]] | None:
        """Each sequence's chain of copied tokens; None if one of them has nothing to copy."""
        copied = []
        for state in states:
            lookup = state.lookup
            found = None if lookup is None else lookup.continuation(self._tree.num_nodes - 1)
            if found is None:
                return None
            copied.append([state.root_token, *found])
        return copied

    def _accept(
        self,
        states: Sequence[SequenceState],
        tree: MedusaTree,
        tokens: Sequence[Sequence[int]],
        outputs: VerifyOutputs,
    ) -> list[Added]:
        """Accepts for each sequence, commits, and moves its state on."""
        first = states[0].chooser
        reductions = self._reduce(states, tree, tokens) if first.needs_reductions else None
        logits = outputs.logits if first.walks_logits else None
        argmax, hidden = self._argmax.of(outputs.argmax), self._hidden.of(outputs.hidden)
        added = []
        for index, state in enumerate(states):
            own_tokens = tokens[index]
            logprobs: tuple[TokenLogprobs, ...] = ()
            if logits is not None:
                nodes, bonus_token, logprobs = state.chooser.walk(
                    tree, own_tokens, state.past_length, logits[index]
                )
            elif reductions is not None:
                nodes, bonus_token = state.chooser.accept(
                    tree, own_tokens, argmax[index], reductions, index
                )
            else:
                nodes = accept_exact(tree, own_tokens, argmax[index])
                bonus_token = argmax[index][nodes[-1]]
            self._engine.commit(state.slot, state.past_length, nodes)
            state.past_length += len(nodes)
            state.root_token = bonus_token
            state.hidden = hidden[index][nodes[-1]]
            token_ids = [own_tokens[node] for node in nodes[1:]]
            token_ids.append(bonus_token)
            if state.lookup is not None:
                state.lookup.add(token_ids)
            added.append((token_ids, logprobs))
        return added

    def _reduce(
        self, states: Sequence[SequenceState], tree: MedusaTree, tokens: Sequence[Sequence[int]]
    ) -> Reductions:
        if len(states) == 1:
            uniforms = states[0].chooser.uniforms(tree, states[0].past_length)[None]
        else:
            uniforms = np.stack([own.chooser.uniforms(tree, own.past_length) for own in states])
        start = perf_counter()
        reductions = self._engine.reduce(tokens, tree, self._sampling, uniforms)
        self.engine_s += perf_counter() - start
        return reductions

    def _padded(self, tree: MedusaTree) -> MedusaTree:
        return tree if tree.num_nodes >= self._min_rows else chain_tree(self._min_rows - 1)


class _Kept(Generic[_Made]):
    """What was made of an output array of the engine, as long as it gives the same array.

    Engines do so step after step, and after a step that has left nothing in the processor's caches
    numpy takes 10 to 20 us to describe a part of one (docs/decisions/decoding.md).
    """

    def __init__(self, make: Callable[[NDArray[Any]], _Made]) -> None:
        self._make = make
        self._array: NDArray[Any] | None = None
        self._made: _Made | None = None

    def of(self, array: NDArray[Any]) -> _Made:
        """Made of this array now or before."""
        if self._made is None or array is not self._array:
            self._array, self._made = array, self._make(array)
        return self._made


def _integers(array: NDArray[np.int64]) -> list[memoryview]:
    """For each sequence its numbers, in their order."""
    return [own.data.cast("B").cast("q") for own in array]


def _states(array: NDArray[np.float32]) -> list[list[NDArray[np.float32]]]:
    """For each sequence its rows, (1, hidden_size) each."""
    return [[row[None] for row in own] for own in array]
