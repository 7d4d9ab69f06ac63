"""The decode loop over tokens: prefill, then draft, verify, accept and commit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.candidates import tokens_from_candidates
from medusa_trt.runtime.choosing import Chooser, TokenLogprobs
from medusa_trt.runtime.engine import Engine, Reductions, VerifyOutputs
from medusa_trt.runtime.lookup import TokenLookup
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree, chain_tree

_SINGLE = chain_tree(0)


@dataclass(slots=True)
class SequenceState:
    """One sequence in a slot: what the next step starts from.

    Attributes:
        slot: the engine's slot that holds its cache rows.
        past_length: valid rows there.
        root_token: the token decided last, not yet in the cache.
        hidden: (hidden_size,) the state that the heads draft from.
        chooser: its acceptance and random numbers.
        lookup: its tokens, where they may be copied as drafts.
    """

    slot: int
    past_length: int
    root_token: int
    hidden: NDArray[np.float32]
    chooser: Chooser
    lookup: TokenLookup | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """Tokens that a step adds to one sequence; the last one is the next step's root."""

    token_ids: list[int]
    logprobs: tuple[TokenLogprobs, ...]


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
        self._tree_indices = tuple(tree.tree_indices(top_k).tolist())
        self._prefill_chunk, self._is_cancelled = prefill_chunk, is_cancelled
        self._min_rows = min_rows
        num_unread = max(0, min_rows - tree.num_nodes)
        self._rows = tuple(range(tree.num_nodes)) if num_unread else None

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
        root_token, hidden = prompt_ids[last], outputs.hidden[0, 0]
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
        start = time.perf_counter()
        outputs = self._engine.verify(
            step_tokens,
            step_tree,
            past_lengths,
            rows=self._rows,
            logits=first.walks_logits,
            reductions=first.needs_reductions,
        )
        self.engine_s += time.perf_counter() - start
        return self._accept(states, tree, tokens, outputs)

    def _drafts(
        self, states: Sequence[SequenceState]
    ) -> tuple[MedusaTree, Sequence[Sequence[int]]]:
        """The tree of this step, and for each sequence the tokens of its nodes."""
        root_tokens = [state.root_token for state in states]
        if self._tree.num_nodes == 1:
            return self._tree, [[token] for token in root_tokens]
        copied = self._copied(states)
        if copied is not None:
            return self._chain, copied
        start = time.perf_counter()
        drafts = self._engine.draft(
            states[0].hidden[None] if len(states) == 1 else np.stack([s.hidden for s in states]),
            root_tokens,
        )
        self.engine_s += time.perf_counter() - start
        return self._tree, tokens_from_candidates(root_tokens, drafts, self._tree_indices)

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
        reductions = self._reduce(states, tree, tokens)
        added = []
        # Few of the elements are read: a list of all costs more than the walk.
        argmax = outputs.argmax.data.cast("B").cast("q")
        num_rows = len(argmax) // len(states)
        for index, state in enumerate(states):
            choice = state.chooser.choose(
                tree,
                tokens[index],
                state.past_length,
                argmax[index * num_rows : (index + 1) * num_rows],
                None if outputs.logits is None else outputs.logits[index],
                reductions,
                index,
            )
            nodes, bonus_token = choice.accepted.nodes, choice.accepted.bonus_token
            self._engine.commit(state.slot, state.past_length, nodes)
            state.past_length += len(nodes)
            state.root_token = bonus_token
            state.hidden = outputs.hidden[index, nodes[-1]]
            token_ids = [tokens[index][node] for node in nodes[1:]]
            token_ids.append(bonus_token)
            if state.lookup is not None:
                state.lookup.add(token_ids)
            added.append(Added(token_ids, choice.logprobs))
        return added

    def _reduce(
        self, states: Sequence[SequenceState], tree: MedusaTree, tokens: Sequence[Sequence[int]]
    ) -> Reductions | None:
        if not states[0].chooser.needs_reductions:
            return None
        uniforms = np.stack([state.chooser.uniforms(tree, state.past_length) for state in states])
        start = time.perf_counter()
        reductions = self._engine.reduce(tokens, tree, self._sampling, uniforms)
        self.engine_s += time.perf_counter() - start
        return reductions

    def _padded(self, tree: MedusaTree) -> MedusaTree:
        return tree if tree.num_nodes >= self._min_rows else chain_tree(self._min_rows - 1)
