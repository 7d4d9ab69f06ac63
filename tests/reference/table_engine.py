"""A slow engine whose model is a pseudo-random function of the visible text.

It keeps a list of cached rows as a real engine does, and answers by what a node can see: a wrong
mask, position or commit changes its answers.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.engine import VerifyOutputs
from medusa_trt.tree_configs import MedusaTree

Row = tuple[int, int]


class TableEngine:
    """An `Engine` with a vocabulary of `vocab_size` and heads that guess well or badly."""

    def __init__(
        self, *, capacity: int, vocab_size: int, num_heads: int, top_k: int, skill: float, seed: int
    ) -> None:
        self.capacity = capacity
        self.vocab_size = vocab_size
        self.num_heads, self.top_k, self.skill, self.seed = num_heads, top_k, skill, seed
        self.rows: list[Row | None] = [None] * capacity
        self.num_steps = 0
        self.closed = False
        self._texts: dict[int, list[int]] = {}

    def next_token(self, text: Sequence[int]) -> int:
        """What the model puts after a text."""
        return int(self._random("model", text).integers(self.vocab_size))

    def verify(
        self,
        input_ids: NDArray[np.int64],
        tree: MedusaTree,
        past_length: int,
        *,
        rows: Sequence[int] | None = None,
        logits: bool = False,
    ) -> VerifyOutputs:
        assert not logits and past_length + tree.num_nodes <= self.capacity
        self.num_steps += 1
        past = self.rows[:past_length]
        step: list[Row] = [
            (int(token), past_length + int(offset))
            for token, offset in zip(input_ids, tree.position_offsets, strict=True)
        ]
        self.rows[past_length : past_length + len(step)] = step
        asked = list(range(tree.num_nodes) if rows is None else rows)
        argmax = np.empty(len(asked), np.int64)
        hidden = np.empty((len(asked), 1), np.float32)
        for index, node in enumerate(asked):
            seen = [row for row in past if row is not None]
            assert len(seen) == past_length
            seen += [step[other] for other in np.flatnonzero(tree.attn_mask[node])]
            text = [token for token, _ in sorted(seen, key=lambda row: row[1])]
            assert [position for _, position in sorted(seen, key=lambda row: row[1])] == list(
                range(len(text))
            )
            argmax[index] = self.next_token(text)
            hidden[index, 0] = self._remember(text)
        return VerifyOutputs(argmax, hidden, None)

    def draft(self, hidden: NDArray[np.float32]) -> NDArray[np.int64]:
        text = list(self._texts[int(hidden[0])])
        text.append(self.next_token(text))
        drafts = np.empty((self.num_heads, self.top_k), np.int64)
        for head in range(self.num_heads):
            rng = self._random("heads", [*text, head])
            others = rng.permutation(self.vocab_size)
            truth = self.next_token(text)
            if rng.random() < self.skill:
                rank = rng.integers(self.top_k)
                others = np.insert(others[others != truth], rank, truth)
            drafts[head] = others[: self.top_k]
            text.append(truth)
        return drafts

    def commit(self, past_length: int, nodes: Sequence[int]) -> None:
        kept = [self.rows[past_length + node] for node in nodes]
        self.rows[past_length : past_length + len(kept)] = kept
        self.rows[past_length + len(kept) :] = [None] * (self.capacity - past_length - len(kept))

    def close(self) -> None:
        self.closed = True

    def _remember(self, text: list[int]) -> int:
        self._texts[len(self._texts)] = text
        return len(self._texts) - 1

    def _random(self, what: str, numbers: Sequence[int]) -> np.random.Generator:
        data = repr((self.seed, what, [int(number) for number in numbers])).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(data).digest()[:8]))
