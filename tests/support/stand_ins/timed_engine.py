"""An engine whose steps take simulated time, and whose heads drafted what was recorded.

`recorded_drafts.npz` holds the drafts of the demo model's heads along seven replies to MT-bench's
first turns, 128 tokens each: `logprobs` (reply, position, head, candidate), in sixteenths of a nat
below 0, and `ranks` (reply, position, head) of the right candidate, 255 if there is none. The token
at position i is number i here.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import medusa_trt.runtime.decoding.decoder as decoder_module
import medusa_trt.runtime.decoding.drafter as drafter_module
from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.decoding.decoder import Decoder
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.engines.base import Drafts, StepTree, TreeBatch, VerifyOutputs
from medusa_trt.runtime.options import GenerationOptions

_RECORDED = np.load(Path(__file__).parents[1] / "measurements" / "recorded_drafts.npz")
_LOGPROBS = _RECORDED["logprobs"] / np.float32(-16)
_RANKS = _RECORDED["ranks"].astype(np.int64)
NUM_REPLIES, REPLY_LENGTH, NUM_HEADS, TOP_K = _LOGPROBS.shape

PROMPT_LENGTH = 100
_WRONG = 10**6

StepMs = Callable[[int, float], float]
"""Milliseconds of a step by rows and by seconds since the beginning."""


class NoCache:
    """The cache of an engine that keeps nothing."""

    def commit(self, slot: int, past_length: int, nodes: Sequence[int]) -> None:
        pass


class TimedEngine:
    """An `Engine` on a simulated clock.

    Attributes:
        now_s: the clock, which only steps and heads advance.
        reply: number of the recorded reply.
        cache: keeps nothing.
        sizes: number of nodes of each step.
    """

    takes_new_trees, batch_size, capacity, prefill_chunk = True, 1, 2000, 128

    def __init__(
        self,
        step_ms: StepMs,
        *,
        heads_ms: float = 0.4,
        noise: float = 0.0,
        spikes: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Starts the clock.

        Args:
            step_ms: time of a step without noise.
            heads_ms: time of the heads.
            noise: standard deviation of the logarithm of a time.
            spikes: share of times that are longer by a large random factor.
            seed: seed of the noise.
        """
        self.now_s, self.sizes, self.reply = 0.0, list[int](), 0
        self.cache = NoCache()
        self._step_ms, self._heads_ms = step_ms, heads_ms
        self._noise, self._spikes, self._random = noise, spikes, random.Random(seed)

    def verify(
        self, tokens: Sequence[Sequence[int]], tree: StepTree, past_lengths: Sequence[int], **_: Any
    ) -> VerifyOutputs:
        num_nodes, begin = tree.num_nodes, past_lengths[0] - PROMPT_LENGTH
        one: Any = 0 if isinstance(tree, TreeBatch) else ...
        parents, depths = tree.parents[one].tolist(), tree.position_offsets[one].tolist()
        is_right = [True] * num_nodes
        for node in range(1, num_nodes):
            is_right[node] = is_right[parents[node]] and tokens[0][node] == begin + depths[node]
        following = [begin + depth + 1 for depth in depths]
        argmax = [token if right else -1 for token, right in zip(following, is_right, strict=True)]
        self.sizes.append(num_nodes)
        self._spend(self._step_ms(num_nodes, self.now_s))
        hidden = np.array(following, np.float32)[None, :, None]
        return VerifyOutputs(np.array([argmax]), np.repeat(hidden, 2, axis=2), None)

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        position = int(hidden[0, 0])
        ids = np.full((1, NUM_HEADS, TOP_K), _WRONG) + np.arange(NUM_HEADS * TOP_K).reshape(
            NUM_HEADS, TOP_K
        )
        for head, rank in enumerate(_RANKS[self.reply, position]):
            if rank < TOP_K:
                ids[0, head, rank] = position + 1 + head
        self._spend(self._heads_ms)
        return Drafts(ids, _LOGPROBS[self.reply, position][None])

    def _spend(self, ms: float) -> None:
        factor = float(np.exp(self._noise * self._random.gauss(0, 1)))
        if self._random.random() < self._spikes:
            factor *= 1 + 3 * self._random.expovariate(1)
        self.now_s += 1e-3 * ms * factor


class Simulation:
    """Replies on a `TimedEngine`, by the real `Decoder`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: TimedEngine) -> None:
        for module in (decoder_module, drafter_module):
            monkeypatch.setattr(module, "perf_counter", lambda: engine.now_s)
        self.engine = engine
        self.decoder = Decoder(
            engine,  # type: ignore[arg-type]
            num_heads=NUM_HEADS,
            top_k=TOP_K,
            min_rows=1,
        )

    def run_reply(self, reply: int, num_tokens: int = REPLY_LENGTH - NUM_HEADS - 1) -> float:
        """Returns the reply's speed over that of plain decoding, without the latter's noise."""
        engine, begin_s, plain_s = self.engine, self.engine.now_s, 0.0
        engine.reply = reply % NUM_REPLIES
        state = SequenceState(
            slot=0,
            chooser=Chooser(GenerationOptions(), [1], 8),
            past_length=PROMPT_LENGTH,
            root_token=0,
            hidden=np.zeros((1, 2), np.float32),
        )
        while state.root_token < num_tokens:
            step_s = 1e-3 * engine._step_ms(1, engine.now_s)
            (added,) = self.decoder.step([state])
            assert isinstance(added, tuple)
            plain_s += step_s * len(added[0])
        return plain_s / (engine.now_s - begin_s)
