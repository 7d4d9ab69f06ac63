"""A slow engine whose model is a pseudo-random function of the visible text.

Like a real engine it keeps a list of cached rows, and its outputs depend on the rows that a node
attends to: a wrong mask, position, commit or move changes them. A step overwrites the outputs of
the step before, because a real engine may use the same memory again.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.base import (
    Drafts,
    Reductions,
    StepTree,
    TokenIds,
    TreeBatch,
    VerifyOutputs,
)
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits

Row = tuple[int, int]


class TableEngine:
    """An `Engine` whose heads draft the greedy text with probability `skill`."""

    prefill_chunk = 128

    def __init__(
        self,
        *,
        capacity: int,
        vocab_size: int,
        num_heads: int,
        top_k: int,
        skill: float,
        seed: int,
        batch_size: int = 1,
        takes_new_trees: bool = False,
    ) -> None:
        self.takes_new_trees = takes_new_trees
        self.capacity, self.batch_size = capacity, batch_size
        self.vocab_size = vocab_size
        self.num_heads, self.top_k, self.skill, self.seed = num_heads, top_k, skill, seed
        self.slots: list[list[Row | None]] = [[None] * capacity for _ in range(batch_size)]
        self.num_steps = self.num_sequence_steps = 0
        self.fail_at_step: int | None = None
        self.closed = False
        self._texts: dict[int, list[int]] = {}
        self._logits: NDArray[np.float32] | None = None
        self._returned: VerifyOutputs | None = None

    def logits_after(self, text: Sequence[int]) -> NDArray[np.float32]:
        """Computes the logits after a text."""
        values = self._random("model", text).normal(size=self.vocab_size) * 3
        logits: NDArray[np.float32] = values.astype(np.float32)
        return logits

    def next_token(self, text: Sequence[int]) -> int:
        """Returns the greedy next token after a text."""
        return int(self.logits_after(text).argmax())

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
        self.num_steps += 1
        self.num_sequence_steps += len(past_lengths)
        if self.num_steps == self.fail_at_step:
            raise EngineError("the device is gone")
        nodes = list(range(tree.num_nodes) if rows is None else rows)
        shape = (len(past_lengths), len(nodes))
        hidden = np.empty((*shape, 1), np.float32)
        all_logits = np.empty((*shape, self.vocab_size), np.float32)
        for index, past_length in enumerate(past_lengths):
            texts = self._visible_texts(
                first_slot + index, input_ids[index], *_tree_of(tree, index), past_length, nodes
            )
            for row, text in enumerate(texts):
                all_logits[index, row] = self.logits_after(text)
                hidden[index, row, 0] = self._remember(text)
        if self._returned is not None:
            self._returned.argmax.fill(-1)
            self._returned.hidden.fill(np.nan)
        self._logits = all_logits
        self._returned = VerifyOutputs(
            all_logits.argmax(-1), hidden, all_logits if logits else None
        )
        return self._returned

    def reduce(
        self,
        input_ids: TokenIds,
        tree: StepTree,
        samplings: Sequence[SamplingOptions],
        uniforms: NDArray[np.float64],
    ) -> Reductions:
        assert self._logits is not None
        tokens = np.asarray(input_ids)
        sampled = np.full(tokens.shape, -1)
        entropy, node_logprob = np.full((2, *tokens.shape), np.nan, np.float32)
        for sequence, sampling in enumerate(samplings):
            if sampling.temperature == 0:
                continue
            parents = _tree_of(tree, sequence)[2]
            scaled = self._logits[sequence].astype(np.float64) / sampling.temperature
            logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
            entropy[sequence] = -(np.exp(logprobs) * logprobs).sum(-1)
            for node in range(tokens.shape[1]):
                row = self._logits[sequence, node]
                sampled[sequence, node] = token_from_logits(row, sampling, uniforms[sequence, node])
                token = tokens[sequence, node]
                node_logprob[sequence, node] = logprobs[max(parents[node], 0), token]
        return Reductions(sampled, entropy, node_logprob)

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        ids = np.stack([self._drafts(list(self._texts[int(state[0])])) for state in hidden])
        shares = 0.5 ** np.arange(1, self.top_k + 1) * self.skill
        logprobs = np.broadcast_to(np.log(np.maximum(shares, 1e-6)), ids.shape)
        return Drafts(ids, logprobs.astype(np.float32))

    @property
    def cache(self) -> "TableEngine":
        return self

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        rows = self.slots[slot]
        kept = [rows[past_length + node] for node in nodes]
        rows[past_length : past_length + len(kept)] = kept
        rows[past_length + len(kept) :] = [None] * (self.capacity - past_length - len(kept))

    def move(self, source: int, target: int, length: int) -> None:
        unknown: list[Row | None] = [None] * (self.capacity - length)
        self.slots[target] = self.slots[source][:length] + unknown

    def exchange(self, first: int, second: int, length: int) -> None:
        unknown: list[Row | None] = [None] * (self.capacity - length)
        left, right = self.slots[first][:length], self.slots[second][:length]
        self.slots[first], self.slots[second] = right + unknown, left + unknown

    def close(self) -> None:
        self.closed = True

    def _visible_texts(
        self,
        slot: int,
        input_ids: Iterable[int],
        offsets: NDArray[np.int64],
        mask: NDArray[np.bool_],
        parents: NDArray[np.int64],
        past_length: int,
        nodes: Sequence[int],
    ) -> list[list[int]]:
        """Writes the rows of the step, and reads the text that each of these nodes attends to."""
        assert past_length + len(parents) <= self.capacity
        rows = self.slots[slot]
        step: list[Row] = [
            (int(token), past_length + int(offset))
            for token, offset in zip(input_ids, offsets, strict=True)
        ]
        past = rows[:past_length]
        rows[past_length : past_length + len(step)] = step
        texts = []
        for node in nodes:
            seen = [row for row in past if row is not None]
            assert len(seen) == past_length, "a row was read before it was written"
            seen += [step[other] for other in np.flatnonzero(mask[node])]
            seen.sort(key=lambda row: row[1])
            assert [position for _, position in seen] == list(range(len(seen)))
            texts.append([token for token, _ in seen])
        return texts

    def _drafts(self, text: list[int]) -> NDArray[np.int64]:
        text.append(self.next_token(text))
        drafts = np.empty((self.num_heads, self.top_k), np.int64)
        for head in range(self.num_heads):
            rng = self._random("heads", [*text, head])
            others = rng.permutation(self.vocab_size)
            truth = self.next_token(text)
            if rng.random() < self.skill:
                others = np.insert(others[others != truth], rng.integers(self.top_k), truth)
            drafts[head] = others[: self.top_k]
            text.append(truth)
        return drafts

    def _remember(self, text: list[int]) -> int:
        self._texts[len(self._texts)] = text
        return len(self._texts) - 1

    def _random(self, purpose: str, numbers: Sequence[int]) -> np.random.Generator:
        data = repr((self.seed, purpose, [int(number) for number in numbers])).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(data).digest()[:8]))


def _tree_of(
    tree: StepTree, sequence: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Position offsets, mask and parents of a sequence's tree."""
    if isinstance(tree, TreeBatch):
        mask = tree.additive_mask[sequence] == 0
        return tree.position_offsets[sequence], mask, tree.parents[sequence]
    return tree.position_offsets, tree.attn_mask, tree.parents
