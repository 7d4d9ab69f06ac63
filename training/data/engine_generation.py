"""Batched generation on a bundle's engine: what it will be asked to draft for, and faster."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from medusa_trt.errors import TrainingError
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.training.data.generation import Continuation, draw, top_logprobs
from medusa_trt.training.data.shards import Features
from medusa_trt.tree_configs import chain_tree

_CHUNK = 16
"""Tokens of each text that are read together."""
SPARE_ROWS = _CHUNK
"""Rows of the cache that reading takes beyond the longest text."""
_SHRINK = 8
"""Ended texts that make it worth to move the others together."""


@dataclass(slots=True)
class _Row:
    """A text in a slot of the cache, and what was written after it."""

    index: int
    length: int
    last: int
    token_ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    hidden: list[torch.Tensor] = field(default_factory=list)
    best: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def continuation(self) -> Continuation:
        features = None
        if self.hidden:
            ids, logprobs = zip(*self.best, strict=True)
            features = Features(torch.stack(self.hidden), torch.stack(ids), torch.stack(logprobs))
            features.check_finite()
        return Continuation(self.token_ids, self.is_ended, features)


class EngineGenerator:
    """Continues texts through an engine, one cache slot each; an ended text costs nothing more."""

    def __init__(self, engine: Engine, eos_token_ids: Sequence[int]) -> None:
        """`engine` must have a slot for each text of a batch."""
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
        """See `BatchGenerator.continue_texts`.

        Raises:
            TrainingError: a text and its continuation do not fit the engine's cache.
        """
        longest = max(map(len, texts))
        if longest + max_new_tokens + SPARE_ROWS > self._engine.capacity:
            raise TrainingError(
                f"a text of {longest} tokens and {max_new_tokens} new ones do not fit the engine's "
                f"{self._engine.capacity} rows: shorten the prompts, or export the bundle with a "
                "larger --max-length"
            )
        done: list[Continuation | None] = [None] * len(texts)
        for start in range(0, len(texts), self._engine.batch_size):
            part = texts[start : start + self._engine.batch_size]
            self._read([text[:-1] for text in part])
            rows = [_Row(start + i, len(text) - 1, text[-1]) for i, text in enumerate(part)]
            for row in self._write(rows, max_new_tokens, temperature, keep_features):
                done[row.index] = row.continuation()
        return [continuation for continuation in done if continuation is not None]

    def _read(self, texts: list[list[int]]) -> None:
        """Fills the slots; what is read beyond a text's end is overwritten by what follows it."""
        columns = enumerate(zip(*texts, strict=False))
        shortest = min(map(len, texts))
        shared = next((i for i, ids in columns if len(set(ids)) > 1), shortest)
        self._read_from(0, [texts[0][:shared]])
        for slot in range(1, len(texts)):
            self._engine.move(0, slot, shared)
        self._read_from(shared, texts)

    def _read_from(self, first: int, texts: list[list[int]]) -> None:
        length = max(map(len, texts)) - first
        ids = np.zeros((len(texts), -(-length // _CHUNK) * _CHUNK), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text) - first] = text[first:]
        for start in range(0, length, _CHUNK):
            chunk = np.ascontiguousarray(ids[:, start : start + _CHUNK])
            self._engine.verify(chunk, self._chain, [first + start] * len(texts), rows=[0])

    def _write(
        self, rows: list[_Row], max_new_tokens: int, temperature: float, keep_features: bool
    ) -> list[_Row]:
        """Writes until all have ended; returns them."""
        slots, ended = rows, list[_Row]()
        for _ in range(max_new_tokens):
            outputs = self._engine.verify(
                [[row.last] for row in slots],
                self._root,
                [row.length for row in slots],
                logits=keep_features or temperature > 0,
            )
            tokens = torch.from_numpy(outputs.argmax[:, 0])
            if outputs.logits is not None:
                logits = torch.from_numpy(outputs.logits[:, 0])
                if keep_features:
                    _keep(slots, torch.from_numpy(outputs.hidden[:, 0]), logits)
                if temperature > 0:
                    tokens = draw(logits, temperature)
            for row, token in zip(slots, tokens.tolist(), strict=True):
                row.length += 1
                row.last = token
                if not row.is_ended:
                    row.token_ids.append(token)
                    row.is_ended = token in self._eos_ids
            left = [row for row in slots if not row.is_ended]
            if not left:
                break
            if len(slots) - len(left) >= min(_SHRINK, len(slots) // 2 + 1):
                ended += [row for row in slots if row.is_ended]
                slots = self._moved_together(slots, len(left))
        return ended + slots

    def _moved_together(self, slots: list[_Row], count: int) -> list[_Row]:
        """Moves the last texts into the first slots whose texts have ended."""
        kept = slots[:count]
        free = [slot for slot, row in enumerate(kept) if row.is_ended]
        sources = [slot for slot in range(count, len(slots)) if not slots[slot].is_ended]
        for source, target in zip(sources, free, strict=True):
            self._engine.move(source, target, slots[source].length)
            kept[target] = slots[source]
        return kept


def _keep(slots: list[_Row], hidden: torch.Tensor, logits: torch.Tensor) -> None:
    states = hidden.to(torch.float16)  # a copy: the engine's memory is overwritten
    ids, logprobs = top_logprobs(logits)
    for place, row in enumerate(slots):
        if not row.is_ended:
            row.hidden.append(states[place])
            row.best.append((ids[place], logprobs[place]))
