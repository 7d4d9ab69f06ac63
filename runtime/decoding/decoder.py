"""The steps of the decode loop: reading a prompt, then draft, verify, accept and commit."""

from collections.abc import Sequence
from itertools import groupby
from time import perf_counter

import numpy as np

from medusa_trt.errors import EngineError, MedusaError
from medusa_trt.runtime.decoding.acceptance import accept_exact
from medusa_trt.runtime.decoding.cached_views import CachedViews, view_integers, view_states
from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.decoding.drafter import Drafter, StepPlan
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.decoding.step_times import StepTimes
from medusa_trt.runtime.decoding.tracing import trace_step
from medusa_trt.runtime.engines.base import Engine, Reductions, VerifyOutputs
from medusa_trt.tree_configs import MedusaTree, chain_tree

_SINGLE = chain_tree(0)

Added = tuple[list[int], tuple[TokenLogprobs, ...]]
"""Tokens that a step adds to one sequence, and their log-probabilities if requested.

The last token is the root of the next step. This is a tuple because making an object of a class
between two engine calls takes 5 us.
"""


class Decoder:
    """Runs the steps of any number of sequences on an engine, each with separate options.

    Attributes:
        drafter: makes the trees.
        num_sequence_steps: sequences in all steps so far.
        num_drafting_steps: those whose trees had drafts.
        num_rows: nodes of these sequences' trees.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        num_heads: int,
        top_k: int,
        min_rows: int,
        step_times: StepTimes | None = None,
    ) -> None:
        """Prepares the drafting.

        Args:
            engine: runs the graphs.
            num_heads: number of heads; 0 where drafts come from prompt lookup alone.
            top_k: candidates of each head.
            min_rows: smallest number of nodes in a step; a smaller tree is padded with nodes whose
                outputs are not read.
            step_times: the engine's step times, if they were measured before.
        """
        self.drafter = Drafter(
            engine, num_heads=num_heads, top_k=top_k, min_nodes=min_rows, times=step_times
        )
        self._engine, self._min_rows = engine, min_rows
        self._verify_s = 0.0
        self.num_rows = self.num_sequence_steps = self.num_drafting_steps = 0
        self._viewing: Sequence[SequenceState] = ()
        self._argmax = CachedViews(view_integers)
        self._hidden = CachedViews(view_states)

    @property
    def engine_s(self) -> float:
        """Seconds spent in the engine's decode steps so far."""
        return self._verify_s + self.drafter.engine_s

    def read(self, state: SequenceState, ids: Sequence[int], *, is_last: bool) -> Added | None:
        """Reads the next tokens of a prompt into the cache.

        Args:
            state: the sequence; its `past_length` says where the tokens begin.
            ids: at most `prefill_chunk` tokens.
            is_last: whether the prompt ends here; then the first token of the reply is chosen.

        Raises:
            MedusaError: no token could be chosen.
        """
        self._keep_hidden(())
        chooser, last = state.chooser, len(ids) - 1
        tree = self._pad(chain_tree(last))
        scores_prompt = chooser.prompt_logprobs is not None
        outputs = self._engine.verify(
            np.resize(np.array(ids, np.int64), (1, tree.num_nodes)),
            tree,
            [state.past_length],
            rows=range(last + 1) if scores_prompt else (last,),
            first_slot=state.slot,
            logits=scores_prompt or (is_last and state.reads_logits),
            reductions=is_last and chooser.needs_reductions,
        )
        if scores_prompt:
            assert outputs.logits is not None
            chooser.score_prompt(state.past_length, outputs.logits[0])
            outputs = VerifyOutputs(
                outputs.argmax[:, last:], outputs.hidden[:, last:], outputs.logits[:, last:]
            )
        if not is_last:
            state.past_length += len(ids)
            return None
        state.past_length, state.root_token = state.past_length + last, ids[last]
        plan = StepPlan(_SINGLE, [_SINGLE], [[ids[last]]], [()])
        added = self._accept([state], plan, outputs)[0]
        if isinstance(added, MedusaError):
            raise added
        return added

    def step(self, states: Sequence[SequenceState]) -> list[Added | MedusaError]:
        """Advances the sequences in slots 0 to B - 1 by one verify step.

        Returns:
            For each sequence the tokens added, or the error by which none could be chosen.
        """
        if self._engine.takes_new_trees and self._fit_together(states):
            return self._step(states)
        # Each run of neighbours with the same tree is a separate step.
        added: list[Added | MedusaError] = []
        for _, group in groupby(states, key=lambda state: id(state.tree)):
            added += self._step(list(group))
        return added

    def _fit_together(self, states: Sequence[SequenceState]) -> bool:
        """Whether the largest fixed tree of these sequences fits behind the longest of them."""
        if len(states) == 1:
            return True
        largest = max((s.tree.num_nodes for s in states if s.tree is not None), default=0)
        return max(s.past_length for s in states) + largest <= self._engine.capacity

    def _step(self, states: Sequence[SequenceState]) -> list[Added | MedusaError]:
        step_start, heads_s = perf_counter(), self.drafter.engine_s
        plan = self.drafter.plan(states)
        tree, tokens, rows = plan.tree, plan.tokens, None
        num_unread = self._min_rows - tree.num_nodes
        if num_unread > 0:
            assert isinstance(tree, MedusaTree)
            rows = range(tree.num_nodes)
            tree, tokens = self._pad(tree), [[*ids, *[ids[-1]] * num_unread] for ids in tokens]
        self.num_sequence_steps += len(states)
        self.num_drafting_steps += len(states) if plan.tree.num_nodes > 1 else 0
        self.num_rows += len(states) * plan.tree.num_nodes
        past_lengths = [state.past_length for state in states]
        self._keep_hidden(states)
        start = perf_counter()
        outputs = self._engine.verify(
            tokens,
            tree,
            past_lengths,
            rows=rows,
            first_slot=states[0].slot,
            logits=any(state.reads_logits for state in states),
            reductions=any(state.chooser.needs_reductions for state in states),
        )
        self._verify_s += perf_counter() - start
        added = self._accept(states, plan, outputs)
        step_s = perf_counter() - step_start - (self.drafter.engine_s - heads_s)
        self.drafter.learn(plan, states, sum(past_lengths) / len(states), step_s)
        return added

    def _accept(
        self, states: Sequence[SequenceState], plan: StepPlan, outputs: VerifyOutputs
    ) -> list[Added | MedusaError]:
        """Accepts and commits a path of its tree for each sequence, and updates its state."""
        needs_reductions = any(state.chooser.needs_reductions for state in states)
        reductions = self._reduce(states, plan) if needs_reductions else None
        argmax, hidden = self._argmax.get(outputs.argmax), self._hidden.get(outputs.hidden)
        result: list[Added | MedusaError] = []
        for index, state in enumerate(states):
            chooser, tree, node_tokens = state.chooser, plan.trees[index], plan.tokens[index]
            model_logits = None
            if state.observer is not None:
                assert outputs.logits is not None
                model_logits = outputs.logits[index].copy()
            logprobs: tuple[TokenLogprobs, ...] = ()
            if chooser.reads_logits:
                assert outputs.logits is not None
                try:
                    nodes, bonus_token, logprobs = chooser.walk(
                        tree, node_tokens, state.past_length, outputs.logits[index]
                    )
                except MedusaError as error:
                    result.append(error)
                    continue
            elif chooser.needs_reductions:
                assert reductions is not None
                nodes, bonus_token = chooser.accept(
                    tree, node_tokens, argmax[index], reductions, index
                )
            else:
                nodes = accept_exact(tree, node_tokens, argmax[index])
                bonus_token = argmax[index][nodes[-1]]
            # A row of NaN has its largest value at 0, and any token may be drawn from it.
            is_suspect = bonus_token == 0 or chooser.needs_reductions or chooser.reads_logits
            if is_suspect and not np.isfinite(outputs.hidden[index][nodes[-1]]).all():
                result.append(_overflow_error(state.past_length + len(nodes) - 1))
                continue
            if state.observer is not None and model_logits is not None:
                state.observer(outputs.hidden[index][nodes], model_logits[nodes])
            if state.is_traced:
                copied = plan.copied[index]
                state.last_step = trace_step(tree, node_tokens, copied, nodes, bonus_token)
            self._engine.cache.commit(state.slot, state.past_length, nodes)
            state.past_length += len(nodes)
            state.root_token = bonus_token
            state.hidden = hidden[index][nodes[-1]]
            token_ids = [node_tokens[node] for node in nodes[1:]]
            token_ids.append(bonus_token)
            if state.lookup is not None:
                state.lookup.add(token_ids)
                if plan.copied[index]:
                    state.record.add_copied(plan.copied[index], token_ids)
            if plan.growth is not None:
                state.record.add_grown(len(token_ids) - 1, plan.growth.gains[index])
            result.append((token_ids, logprobs))
        self._viewing = states
        return result

    def _reduce(self, states: Sequence[SequenceState], plan: StepPlan) -> Reductions:
        uniforms = np.zeros((len(states), plan.tree.num_nodes))
        for index, state in enumerate(states):
            if state.chooser.needs_reductions:
                numbers = state.chooser.take_uniforms(plan.trees[index], state.past_length)
                uniforms[index, : len(numbers)] = numbers
        start = perf_counter()
        samplings = [state.chooser.reduced_sampling for state in states]
        reductions = self._engine.reduce(plan.tokens, plan.tree, samplings, uniforms)
        self._verify_s += perf_counter() - start
        return reductions

    def _keep_hidden(self, stepped: Sequence[SequenceState]) -> None:
        """Copies hidden states that the engine's next step overwrites while they are needed."""
        for state in self._viewing:
            if state.hidden is not None and not any(state is other for other in stepped):
                state.hidden = state.hidden.copy()
        self._viewing = ()

    def _pad(self, tree: MedusaTree) -> MedusaTree:
        return tree if tree.num_nodes >= self._min_rows else chain_tree(self._min_rows - 1)


def _overflow_error(position: int) -> EngineError:
    return EngineError(
        f"the model's numbers overflow at position {position}, so it predicts nothing there: "
        "export it with another --precision, or use another checkpoint"
    )
