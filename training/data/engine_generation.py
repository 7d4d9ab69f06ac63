"""Batched generation through a bundle's engine: faster, and by the model that will be deployed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from medusa_trt.errors import TrainingError
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.training.data.generation import Continuation, draw_tokens, select_top_logprobs
from medusa_trt.training.data.shards import Features
from medusa_trt.tree_configs import chain_tree

_CHUNK = 16
"""Tokens of each text that one engine call reads."""
SPARE_ROWS = _CHUNK
"""Cache rows that reading a text needs beyond its length."""
_MIN_ENDED = 8
"""Number of ended texts from which on the others are moved into their slots."""


@dataclass(slots=True)
class _Sequence:
    """A text in a slot of the cache, and its continuation so far."""

    index: int
    length: int
    last: int
    token_ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    hidden: list[torch.Tensor] = field(default_factory=list)
    best: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def finish(self) -> Continuation:
        features = None
        if self.hidden:
            features = Features.from_tokens(self.hidden, self.best)
        return Continuation(self.token_ids, self.is_ended, features)


class EngineGenerator:
    """Continues texts through an engine, one cache slot each; ended texts leave the batch."""

    def __init__(
        self,
        engine: Engine,
        eos_token_ids: Sequence[int],
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepares the trees; `on_step` is as in `BatchGenerator`."""
        self._on_step = on_step
        self._engine, self._eos_ids = engine, frozenset(eos_token_ids)
        self._root, self._chain = chain_tree(0), chain_tree(_CHUNK - 1)

    def continue_texts(
        self,
        texts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        keep_features: bool = False,
    ) -> list[Continuation]:
        """See `Generator.continue_texts`.

        Raises:
            TrainingError: a text and its continuation do not fit into the engine's cache.
        """
        longest = max(map(len, texts))
        if longest + max_new_tokens + SPARE_ROWS > self._engine.capacity:
            raise TrainingError(
                f"a text of {longest} tokens and {max_new_tokens} new ones do not fit the engine's "
                f"cache of {self._engine.capacity} rows: shorten the prompts, or export the bundle "
                "with a larger --max-length"
            )
        done: list[Continuation | None] = [None] * len(texts)
        for start in range(0, len(texts), self._engine.batch_size):
            part = texts[start : start + self._engine.batch_size]
            self._read([text[:-1] for text in part])
            slots = [_Sequence(start + i, len(text) - 1, text[-1]) for i, text in enumerate(part)]
            for sequence in self._write(slots, max_new_tokens, temperature, keep_features):
                done[sequence.index] = sequence.finish()
        return [continuation for continuation in done if continuation is not None]

    def _read(self, texts: list[list[int]]) -> None:
        """Reads the texts into the slots, a common prefix only once.

        Rows beyond the end of a text are overwritten by its continuation.
        """
        columns = enumerate(zip(*texts, strict=False))
        shortest = min(map(len, texts))
        shared = next((i for i, ids in columns if len(set(ids)) > 1), shortest)
        self._read_chunks(0, [texts[0][:shared]])
        for slot in range(1, len(texts)):
            self._engine.move(0, slot, shared)
        self._read_chunks(shared, texts)

    def _read_chunks(self, first: int, texts: list[list[int]]) -> None:
        length = max(map(len, texts)) - first
        ids = np.zeros((len(texts), -(-length // _CHUNK) * _CHUNK), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text) - first] = text[first:]
        for start in range(0, length, _CHUNK):
            chunk = np.ascontiguousarray(ids[:, start : start + _CHUNK])
            self._engine.verify(chunk, self._chain, [first + start] * len(texts), rows=[0])

    def _write(
        self,
        slots: list[_Sequence],
        max_new_tokens: int,
        temperature: float,
        keep_features: bool,
    ) -> list[_Sequence]:
        """Continues the texts until all have ended."""
        ended: list[_Sequence] = []
        for _ in range(max_new_tokens):
            outputs = self._engine.verify(
                [[sequence.last] for sequence in slots],
                self._root,
                [sequence.length for sequence in slots],
                logits=keep_features or temperature > 0,
            )
            tokens = torch.from_numpy(outputs.argmax[:, 0])
            if outputs.logits is not None:
                logits = torch.from_numpy(outputs.logits[:, 0])
                if keep_features:
                    _keep_features(slots, torch.from_numpy(outputs.hidden[:, 0]), logits)
                if temperature > 0:
                    tokens = draw_tokens(logits, temperature)
            for sequence, token in zip(slots, tokens.tolist(), strict=True):
                sequence.length += 1
                sequence.last = token
                if not sequence.is_ended:
                    sequence.token_ids.append(token)
                    sequence.is_ended = token in self._eos_ids
            self._on_step()
            left = [sequence for sequence in slots if not sequence.is_ended]
            if not left:
                break
            if len(slots) - len(left) >= min(_MIN_ENDED, len(slots) // 2 + 1):
                ended += [sequence for sequence in slots if sequence.is_ended]
                slots = self._compact(slots, len(left))
        return ended + slots

    def _compact(self, slots: list[_Sequence], count: int) -> list[_Sequence]:
        """Moves the last texts into the first `count` slots whose texts have ended."""
        kept = slots[:count]
        free = [slot for slot, sequence in enumerate(kept) if sequence.is_ended]
        sources = [slot for slot in range(count, len(slots)) if not slots[slot].is_ended]
        for source, target in zip(sources, free, strict=True):
            self._engine.move(source, target, slots[source].length)
            kept[target] = slots[source]
        return kept


def _keep_features(slots: list[_Sequence], hidden: torch.Tensor, logits: torch.Tensor) -> None:
    states = hidden.to(torch.float16)  # this copies: the engine overwrites its memory
    ids, logprobs = select_top_logprobs(logits)
    for place, sequence in enumerate(slots):
        if not sequence.is_ended:
            sequence.hidden.append(states[place])
            sequence.best.append((ids[place], logprobs[place]))
