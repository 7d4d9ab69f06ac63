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
_Value = TypeVar("_Value")


@dataclass(slots=True)
class SequenceState:
    """The state from which the next step of one sequence starts.

    Attributes:
        slot: the engine's slot with the cache rows of the sequence.
        past_length: number of valid rows in the slot.
        root_token: the token chosen last, which is not yet in the cache.
        hidden: (1, hidden_size) the hidden state that the heads draft from.
        chooser: chooses the tokens, with the acceptance rule and the random numbers.
        lookup: the tokens so far, if drafts may be copied from them.
    """

    slot: int
    past_length: int
    root_token: int
    hidden: NDArray[np.float32]
    chooser: Chooser
    lookup: TokenLookup | None = None


Added = tuple[list[int], tuple[TokenLogprobs, ...]]
"""Tokens that a step adds to one sequence, and their log-probabilities if requested.

The last token is the root of the next step. This is a tuple because making an object of a class
between two engine calls takes 5 us.
"""


class PrefillCancelled(Exception):
    """A prefill was cancelled between two chunks."""


class Decoder:
    """Steps sequences together on an engine; they share one tree and one distribution.

    Attributes:
        engine_s: seconds spent in the engine's steps so far.
    """

    def __init__(
        self,
        engine: Engine,
        tree: MedusaTree,
        sampling: SamplingOptions,
        *,
        top_k: int | None,
        min_rows: int,
        prefill_chunk: int,
        lookup_ngram: int = 0,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares the index arrays of the tree.

        Args:
            engine: runs the graphs.
            tree: the draft tree.
            sampling: the distribution of all sequences.
            top_k: number of candidates of each head; None without heads, where the tree is a
                chain that prompt lookup fills, and a step without such a chain drafts nothing.
            min_rows: smallest number of nodes in a step; a smaller tree is padded with nodes whose
                outputs are not read.
            prefill_chunk: number of tokens in one prefill step.
            lookup_ngram: number of last tokens that prompt lookup searches for; if they occurred
                before in every sequence, a step drafts what followed them, as a chain with as many
                nodes as the tree. 0 turns prompt lookup off.
            is_cancelled: called before each prefill step; if it returns true, the prefill ends.
        """
        self.engine_s = 0.0
        self._engine = engine
        self._tree = tree
        self._chain = chain_tree(tree.num_nodes - 1)
        self._lookup_ngram = lookup_ngram if tree.num_nodes > 1 else 0
        self._sampling = sampling
        self._node_tokens = (
            None if top_k is None else node_tokens_from_indices(tree.tree_indices(top_k).tolist())
        )
        self._prefill_chunk, self._is_cancelled = prefill_chunk, is_cancelled
        self._min_rows = min_rows
        self._draft_ids = _Cached(_sequence_integers)
        self._argmax = _Cached(_sequence_integers)
        self._hidden = _Cached(_sequence_states)

    def start(
        self, slot: int, prompt_ids: Sequence[int], num_cached: int, chooser: Chooser
    ) -> tuple[SequenceState, Added]:
        """Prefills a prompt after its `num_cached` cached tokens, and chooses the first token.

        Raises:
            PrefillCancelled: `is_cancelled` returned true.
        """
        last = len(prompt_ids) - 1
        for start in range(num_cached, len(prompt_ids), self._prefill_chunk):
            if self._is_cancelled():
                raise PrefillCancelled
            ids = np.array(prompt_ids[start : start + self._prefill_chunk], np.int64)
            chunk = self._pad(chain_tree(len(ids) - 1))
            outputs = self._engine.verify(
                np.resize(ids, (1, chunk.num_nodes)),
                chunk,
                [start],
                rows=(len(ids) - 1,),
                first_slot=slot,
                logits=chooser.reads_logits,
                reductions=chooser.needs_reductions,
            )
        lookup = TokenLookup(prompt_ids, self._lookup_ngram) if self._lookup_ngram else None
        root_token, hidden = prompt_ids[last], outputs.hidden[0]
        state = SequenceState(slot, last, root_token, hidden, chooser, lookup)
        tokens = [[state.root_token]]
        return state, self._accept([state], _SINGLE, tokens, outputs)[0]

    def step(self, states: Sequence[SequenceState]) -> list[Added]:
        """Advances the sequences in slots 0 to B - 1 by one verify step."""
        tree, tokens = self._make_drafts(states)
        step_tree, step_tokens, rows = tree, tokens, None
        if tree.num_nodes < self._min_rows:
            step_tree, rows = self._pad(tree), tuple(range(tree.num_nodes))
            num_unread = step_tree.num_nodes - tree.num_nodes
            step_tokens = [[*ids, *[ids[-1]] * num_unread] for ids in tokens]
        first = states[0].chooser
        past_lengths = [state.past_length for state in states]
        start = perf_counter()
        outputs = self._engine.verify(
            step_tokens,
            step_tree,
            past_lengths,
            rows=rows,
            logits=first.reads_logits,
            reductions=first.needs_reductions,
        )
        self.engine_s += perf_counter() - start
        return self._accept(states, tree, tokens, outputs)

    def _make_drafts(
        self, states: Sequence[SequenceState]
    ) -> tuple[MedusaTree, Sequence[Sequence[int]]]:
        """Makes the tree of this step, and the tokens of its nodes for each sequence."""
        root_tokens = [state.root_token for state in states]
        if self._tree.num_nodes == 1:
            return self._tree, [[token] for token in root_tokens]
        if self._lookup_ngram:
            chains = self._copy_drafts(states)
            if chains is not None:
                return self._chain, chains
        if self._node_tokens is None:
            return _SINGLE, [[token] for token in root_tokens]
        start = perf_counter()
        drafts = self._engine.draft(
            states[0].hidden if len(states) == 1 else np.concatenate([s.hidden for s in states]),
            root_tokens,
        )
        self.engine_s += perf_counter() - start
        candidates = self._draft_ids.get(drafts)
        return self._tree, tokens_from_candidates(root_tokens, candidates, self._node_tokens)

    def _copy_drafts(self, states: Sequence[SequenceState]) -> list[list[int]] | None:
        """Copies a chain of drafts for each sequence; None if a sequence has nothing to copy."""
        chains = []
        for state in states:
            lookup = state.lookup
            drafts = None if lookup is None else lookup.find_continuation(self._tree.num_nodes - 1)
            if drafts is None:
                return None
            chains.append([state.root_token, *drafts])
        return chains

    def _accept(
        self,
        states: Sequence[SequenceState],
        tree: MedusaTree,
        tokens: Sequence[Sequence[int]],
        outputs: VerifyOutputs,
    ) -> list[Added]:
        """Accepts and commits a path of the tree for each sequence, and updates its state."""
        first = states[0].chooser
        reductions = self._reduce(states, tree, tokens) if first.needs_reductions else None
        logits = outputs.logits if first.reads_logits else None
        argmax, hidden = self._argmax.get(outputs.argmax), self._hidden.get(outputs.hidden)
        added = []
        for index, state in enumerate(states):
            node_tokens = tokens[index]
            logprobs: tuple[TokenLogprobs, ...] = ()
            if logits is not None:
                nodes, bonus_token, logprobs = state.chooser.walk(
                    tree, node_tokens, state.past_length, logits[index]
                )
            elif reductions is not None:
                nodes, bonus_token = state.chooser.accept(
                    tree, node_tokens, argmax[index], reductions, index
                )
            else:
                nodes = accept_exact(tree, node_tokens, argmax[index])
                bonus_token = argmax[index][nodes[-1]]
            self._engine.commit(state.slot, state.past_length, nodes)
            state.past_length += len(nodes)
            state.root_token = bonus_token
            state.hidden = hidden[index][nodes[-1]]
            token_ids = [node_tokens[node] for node in nodes[1:]]
            token_ids.append(bonus_token)
            if state.lookup is not None:
                state.lookup.add(token_ids)
            added.append((token_ids, logprobs))
        return added

    def _reduce(
        self, states: Sequence[SequenceState], tree: MedusaTree, tokens: Sequence[Sequence[int]]
    ) -> Reductions:
        if len(states) == 1:
            uniforms = states[0].chooser.node_uniforms(tree, states[0].past_length)[None]
        else:
            uniforms = np.stack([s.chooser.node_uniforms(tree, s.past_length) for s in states])
        start = perf_counter()
        reductions = self._engine.reduce(tokens, tree, self._sampling, uniforms)
        self.engine_s += perf_counter() - start
        return reductions

    def _pad(self, tree: MedusaTree) -> MedusaTree:
        return tree if tree.num_nodes >= self._min_rows else chain_tree(self._min_rows - 1)


class _Cached(Generic[_Value]):
    """Keeps the value made from an output array of the engine, while the array stays the same.

    Engines return the same arrays step after step. A step empties the processor's caches, and numpy
    then takes 10 to 20 us to make a view (docs/decisions/decoding.md).
    """

    def __init__(self, make: Callable[[NDArray[Any]], _Value]) -> None:
        self._make = make
        self._array: NDArray[Any] | None = None
        self._value: _Value | None = None

    def get(self, array: NDArray[Any]) -> _Value:
        """Returns the value of this array, and makes it if the array is another one."""
        if self._value is None or array is not self._array:
            self._array, self._value = array, self._make(array)
        return self._value


def _sequence_integers(array: NDArray[np.int64]) -> list[memoryview]:
    """Flat view of the integers of each sequence."""
    return [part.data.cast("B").cast("q") for part in array]


def _sequence_states(array: NDArray[np.float32]) -> list[list[NDArray[np.float32]]]:
    """Views of the rows of each sequence, (1, hidden_size) each."""
    return [[row[None] for row in part] for part in array]
