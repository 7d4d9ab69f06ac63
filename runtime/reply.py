"""A growing reply: its tokens, its text, its end and its statistics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from medusa_trt.runtime.decoding.choosing import TokenLogprobs
from medusa_trt.runtime.decoding.decoder import Added
from medusa_trt.runtime.decoding.tracing import VerifiedStep
from medusa_trt.runtime.text.codec import TextStream
from medusa_trt.runtime.text.stop_texts import StopTexts

FinishReason = Literal["stop", "length", "cache_full", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """Counts and times of one reply.

    Attributes:
        prompt_tokens: number of tokens in the prompt.
        cached_tokens: number of prompt tokens that were in the cache already.
        new_tokens: number of tokens in the reply, with a final end-of-sequence token.
        accept_lengths: number of tokens that each verify step added, before the reply was cut at
            its end.
        prefill_s: seconds until the first token, from when a slot was free.
        decode_s: seconds for the tokens after the first.
        engine_s: seconds of `decode_s` spent in engine calls; in a batch, for all its replies.
    """

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    accept_lengths: tuple[int, ...]
    prefill_s: float
    decode_s: float
    engine_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decoding throughput: tokens after the first over `decode_s`; 0 without such tokens."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 else 0.0

    @property
    def mean_accept_length(self) -> float:
        """Mean acceptance length: tokens that a verify step added; 1 for plain decoding."""
        return float(np.mean(self.accept_lengths)) if self.accept_lengths else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished reply.

    Attributes:
        token_ids: the reply's tokens, with those that a stop text removed from `text`.
        text: the reply's text, without a stop text.
        finish_reason: "stop" (the model or a stop text ended it), "length" (`max_new_tokens`),
            "cache_full", "cancelled" or "error".
        stats: counts and times.
        logprobs: one for each token, if requested.
        prompt_logprobs: one for each token of the prompt but the first, if requested.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    stats: GenerationStats
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class StreamEvent(NamedTuple):
    """The result of one step.

    Attributes:
        token_ids: the new tokens.
        text: the new text; an unfinished character, and text that may begin a stop text, come
            with a later event.
        accept_length: tokens that the verify step accepted, 0 for the first event.
        generation: the whole reply; only in the last event.
        step: the verified tree, if the request is traced; None in the first event, which comes of
            the prompt, and in one without a step. It may hold tokens after the end of the reply.
    """

    token_ids: list[int]
    text: str
    accept_length: int
    generation: Generation | None = None
    step: VerifiedStep | None = None


class Reply:
    """Collects the tokens of all steps, and cuts them where the reply ends.

    Attributes:
        finish_reason: None while the reply grows.
        token_ids: the tokens so far.
        num_cached: number of prompt tokens that were in the cache already.
        logprobs: their log-probabilities, if requested.
    """

    def __init__(
        self,
        *,
        num_prompt: int,
        limit: int,
        limit_reason: FinishReason,
        stop_ids: Sequence[int],
        stop: StopTexts,
        text_stream: TextStream,
        text: str = "",
        prompt_logprobs: Sequence[TokenLogprobs] = (),
        streamed: bool = True,
    ) -> None:
        """Begins an empty reply.

        Args:
            num_prompt: number of tokens in the prompt.
            limit: maximum number of tokens in the reply.
            limit_reason: finish reason of a reply that reaches the limit.
            stop_ids: tokens that end the reply.
            stop: texts that end the reply, and the marks in what `text_stream` gives.
            text_stream: decodes the tokens.
            text: text before the first token (an echo of the prompt).
            prompt_logprobs: of the prompt's tokens; grows while the prompt is read.
            streamed: whether events need text. Without events and stop texts all tokens are decoded
                at the end, because decoding takes a quarter of a step's host time.
        """
        self.finish_reason: FinishReason | None = None
        self.token_ids: list[int] = []
        self._num_prompt, self.num_cached = num_prompt, 0
        self._limit, self._limit_reason = limit, limit_reason
        self._stop_ids, self._stop = frozenset(stop_ids), stop.texts
        self._cleaned = stop.cleaned
        self._text_stream = text_stream
        self._decodes_late = not streamed and not stop.texts
        self._echo = self._unshown_echo = text
        self._text = ""
        self._num_shown = 0
        self.logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs = prompt_logprobs
        self._accept_lengths: list[int] = []
        self._start_s = self._first_s = time.perf_counter()
        self._first_engine_s = 0.0

    def begin(self, num_cached: int) -> None:
        """Starts the clock; `num_cached` prompt tokens are in the cache already."""
        self.num_cached = num_cached
        self._start_s = self._first_s = time.perf_counter()

    def add(self, added: Added, engine_s: float) -> StreamEvent | None:
        """Adds a step's tokens up to the end of the reply, where it sets `finish_reason`.

        Args:
            added: the step's tokens.
            engine_s: seconds that the decoder has spent in engine calls so far.

        Returns:
            An event, if events need text.
        """
        token_ids, logprobs = added
        accept_length = 0
        if self.token_ids:
            accept_length = len(token_ids)
            self._accept_lengths.append(accept_length)
        else:
            self._first_s, self._first_engine_s = time.perf_counter(), engine_s
        added_ids = self._add_tokens(token_ids)
        if logprobs:
            self.logprobs += logprobs[: len(added_ids)]
        if self._decodes_late:
            return None
        return StreamEvent(added_ids, self.take_new_text(), accept_length)

    def finish(self, engine_s: float, reason: FinishReason | None = None) -> Generation:
        """Returns the finished reply; `reason` is given if its tokens did not end it."""
        self.finish_reason = reason or self.finish_reason
        assert self.finish_reason is not None
        if self._decodes_late:
            self._text = self._decode(self.token_ids)
        stats = GenerationStats(
            prompt_tokens=self._num_prompt,
            cached_tokens=self.num_cached,
            new_tokens=len(self.token_ids),
            accept_lengths=tuple(self._accept_lengths),
            prefill_s=self._first_s - self._start_s,
            decode_s=time.perf_counter() - self._first_s,
            engine_s=engine_s - self._first_engine_s if self.token_ids else 0.0,
        )
        text = self._clean(self._echo + self._text)
        return Generation(
            self.token_ids,
            text,
            self.finish_reason,
            stats,
            tuple(self.logprobs),
            tuple(self._prompt_logprobs),
        )

    def take_new_text(self) -> str:
        """Returns the new text that no stop text can remove any more; all of it after the end."""
        end = len(self._text)
        if self.finish_reason is None:
            end -= max((_overlap(self._text, text) for text in self._stop), default=0)
        echo, self._unshown_echo = self._unshown_echo, ""
        new_text = echo + self._text[self._num_shown : end]
        self._num_shown = end
        return self._clean(new_text)

    def _clean(self, text: str) -> str:
        """Replaces the marks of special tokens by what the reply shows for them."""
        return text.translate(self._cleaned) if self._cleaned else text

    def _add_tokens(self, token_ids: list[int]) -> list[int]:
        """Adds tokens up to the one that ends the reply, and returns the added ones."""
        added_ids: list[int] = []
        for token in token_ids:
            added_ids.append(token)
            if token in self._stop_ids:
                self.finish_reason = "stop"
                break
            if len(self.token_ids) + len(added_ids) == self._limit:
                self.finish_reason = self._limit_reason
            if self._stop:
                before = len(self._text)
                self._text += self._text_stream.push([token])
                self._cut_at_stop_text(before)
            if self.finish_reason is not None:
                break
        if not self._stop and not self._decodes_late:
            self._text += self._decode(added_ids)
        self.token_ids += added_ids
        return added_ids

    def _decode(self, token_ids: list[int]) -> str:
        """Decodes tokens without the one that ended the reply, which need not be a special one."""
        has_end = bool(token_ids) and token_ids[-1] in self._stop_ids
        return self._text_stream.push(token_ids[:-1] if has_end else token_ids)

    def _cut_at_stop_text(self, before: int) -> None:
        """Cuts the text before the first stop text that ends after position `before`."""
        longest = max(map(len, self._stop))
        first = max(0, before - longest + 1)
        matches = [self._text.find(text, first) for text in self._stop]
        starts = [start for start in matches if start >= 0]
        if starts:
            self._text = self._text[: min(starts)]
            self.finish_reason = "stop"


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
