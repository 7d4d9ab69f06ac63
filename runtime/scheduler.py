"""The scheduler: requests come and go at any step, and run together in one batch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import NamedTuple

from medusa_trt.errors import MedusaError, QueueFullError
from medusa_trt.runtime.decoding.decoder import Added, Decoder
from medusa_trt.runtime.decoding.sequence import SequenceState
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.reply import FinishReason, Reply, StreamEvent
from medusa_trt.runtime.slots import Slots

_LEAST_CHUNK = 16
"""Smallest number of tokens of a prompt that are read between two steps of running replies."""

_CHUNK_WEIGHT = 0.3
"""Weight of a new chunk in the running mean of the time that a token of a prompt takes."""


@dataclass(slots=True, kw_only=True)
class Request:
    """A reply that the scheduler makes.

    Attributes:
        prompt_ids: the prompt.
        reply: collects the tokens.
        state: how tokens are drafted and chosen; its slot is assigned when the prompt is read.
    """

    prompt_ids: Sequence[int]
    reply: Reply
    state: SequenceState


@dataclass(slots=True)
class Counts:
    """What a scheduler has done so far.

    Attributes:
        prompt_tokens: tokens of the prompts that were read.
        cached_tokens: those that were in the cache already.
        new_tokens: tokens of replies.
        accepted_drafts: those of them that were drafts, by their depth in the tree, from 1 on.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    accepted_drafts: list[int] = field(default_factory=list)

    def add_step(self, num_new: int, num_verified: int) -> None:
        """Counts a step that verified so many tokens, of which a reply took `num_new`."""
        self.new_tokens += num_new
        num_accepted = min(num_new, num_verified - 1)
        if num_accepted > len(self.accepted_drafts):
            self.accepted_drafts += [0] * (num_accepted - len(self.accepted_drafts))
        for place in range(num_accepted):
            self.accepted_drafts[place] += 1


class RequestEvent(NamedTuple):
    """What a step did for one request.

    Attributes:
        request_id: the number that `Scheduler.add` returned.
        event: the new tokens and text; its `generation` is set in the request's last event.
        error: why the reply ended early, if it did so by an error.
    """

    request_id: int
    event: StreamEvent
    error: MedusaError | None = None


class Scheduler:
    """Runs requests in one batch: they join and leave at any step.

    A step reads a part of one waiting prompt, then advances all running replies. So running replies
    never wait longer than for one part. Waiting requests are taken in by priority, then in the
    order of their arrival. Nothing here is safe to call from two threads at once, but `cancel`.

    Attributes:
        counts: what it has done; another thread may read it.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: Decoder,
        *,
        max_waiting: int | None = None,
        max_pause_ms: float = 100.0,
    ) -> None:
        """Starts without requests.

        Args:
            engine: has a slot for each request that runs at the same time.
            decoder: runs the steps on this engine.
            max_waiting: most requests that wait for a slot; None for any number.
            max_pause_ms: how long running replies should wait for a part of another prompt; at
                least `_LEAST_CHUNK` tokens are read.
        """
        self._engine, self._decoder = engine, decoder
        self._max_waiting, self._max_pause_ms = max_waiting, max_pause_ms
        self._slots = Slots(engine)
        self._numbers = count()
        self._waiting: list[tuple[int, int, Request]] = []
        self._reading: tuple[int, Request] | None = None
        self._running: list[tuple[int, Request]] = []
        self._cancelled: deque[int] = deque()
        self._late_events: list[RequestEvent] = []
        self._token_ms = 0.0
        self.counts = Counts()

    @property
    def num_running(self) -> int:
        """Number of requests that have a slot."""
        return len(self._running) + (self._reading is not None)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting)

    @property
    def num_cached_tokens(self) -> int:
        """Number of tokens of running requests in the KV cache; another thread may ask for it."""
        requests = [request for _, request in list(self._running)]
        if (reading := self._reading) is not None:
            requests.append(reading[1])
        return sum(request.state.past_length for request in requests)

    @property
    def is_idle(self) -> bool:
        """Whether `step` has nothing to do."""
        return not (self.num_running or self._waiting or self._late_events)

    def add(self, request: Request, *, priority: int = 0) -> int:
        """Adds a request, which joins as soon as a slot is free.

        Args:
            request: the request.
            priority: requests of a higher one are taken first.

        Returns:
            The request's number.

        Raises:
            QueueFullError: too many requests wait already.
        """
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise QueueFullError(
                f"{len(self._waiting)} requests wait already, the limit is {self._max_waiting}: "
                "try again later, or open the session with a larger batch_size"
            )
        number = next(self._numbers)
        heappush(self._waiting, (-priority, number, request))
        return number

    def cancel(self, request_id: int) -> None:
        """Ends a request before the next step, with what it has; any thread may call this."""
        self._cancelled.append(request_id)

    def cancel_all(self) -> None:
        """Cancels every request that was added; any thread may call this."""
        current = [number for number, _ in self._running]
        current += [number for _, number, _ in list(self._waiting)]
        reading = self._reading
        if reading is not None:
            current.append(reading[0])
        self._cancelled.extend(current)

    def forget(self) -> None:
        """Forgets the texts of ended requests, so that no prompt begins like one of them."""
        self._slots.forget_ended()

    def step(self) -> list[RequestEvent]:
        """Reads a part of a prompt, and advances all running replies by one step.

        Returns:
            What happened to each request; empty when a part of a prompt was read and nothing runs.
        """
        events, self._late_events = self._late_events, []
        try:
            if self._cancelled:
                self._end_cancelled(events)
            if self._reading is None and self._waiting and self._slots.has_free:
                self._begin()
            joins = self._reading is not None and self._read(events)
            if self._running:
                self._advance(events)
            if joins:
                self._join()
        except BaseException:
            # After Ctrl-C in the middle of a step nobody knows which rows are valid.
            self._end_running(None, events)
            if self._reading is not None:
                self._slots.forget(self._reading[1].state.slot)
                self._end_reading(events)
            self._late_events = events
            raise
        return events

    def _begin(self) -> None:
        """Takes in the first waiting request; its prompt's known beginning is not read again."""
        _, number, request = heappop(self._waiting)
        state = request.state
        # Of a beginning that is not read again, nothing gives the log-probabilities.
        scores_prompt = request.state.chooser.prompt_logprobs is not None
        state.slot = self._slots.begin(() if scores_prompt else request.prompt_ids[:-1])
        state.past_length = len(self._slots.token_ids(state.slot))
        request.reply.begin(num_cached=state.past_length)
        self._reading = number, request

    def _read(self, events: list[RequestEvent]) -> bool:
        """Reads the next part of the prompt; returns whether the request now joins the batch."""
        assert self._reading is not None
        number, request = self._reading
        state, size = request.state, self._engine.prefill_chunk
        if self._running and self._token_ms:
            fitting = int(self._max_pause_ms / self._token_ms) // _LEAST_CHUNK * _LEAST_CHUNK
            size = max(_LEAST_CHUNK, min(size, fitting))
        begin = state.past_length
        ids = request.prompt_ids[begin : begin + size]
        is_last = begin + len(ids) == len(request.prompt_ids)
        start = perf_counter()
        try:
            added = self._decoder.read(state, ids, is_last=is_last)
        except MedusaError as error:
            self._end_reading(events, error)
            return False
        token_ms = 1e3 * (perf_counter() - start) / len(ids)
        self._token_ms += (_CHUNK_WEIGHT if self._token_ms else 1.0) * (token_ms - self._token_ms)
        self._slots.token_ids(state.slot).extend(ids)
        if added is None:
            return False
        self._add(number, request, added, events)
        if request.reply.finish_reason is None:
            return True
        self._reading = None
        self._slots.end_reading()
        return False

    def _join(self) -> None:
        if self._reading is None:
            return
        self._reading[1].state.slot = self._slots.join()
        self._running.append(self._reading)
        self._reading = None

    def _advance(self, events: list[RequestEvent]) -> None:
        """Runs a step of all running replies, and removes those that end."""
        states = [request.state for _, request in self._running]
        roots = [state.root_token for state in states]
        try:
            added = self._decoder.step(states)
        except MedusaError as error:
            self._end_running(error, events)
            return
        ended = []
        for place, (number, request) in enumerate(self._running):
            tokens = added[place]
            if isinstance(tokens, MedusaError):
                events.append(self._finish(number, request, tokens))
                ended.append(place)
                continue
            cached = self._slots.token_ids(request.state.slot)
            cached.append(roots[place])
            cached += tokens[0][:-1]
            self._add(number, request, tokens, events)
            if request.reply.finish_reason is not None:
                ended.append(place)
        for place in reversed(ended):
            self._leave(place)

    def _leave(self, place: int) -> None:
        """Removes a running request; the last one takes its slot."""
        self._slots.end_running(place)
        last = self._running.pop()
        if place < len(self._running):
            last[1].state.slot = place
            self._running[place] = last

    def _add(self, number: int, request: Request, added: Added, events: list[RequestEvent]) -> None:
        num_before = len(request.reply.token_ids)
        event = request.reply.add(added, self._decoder.engine_s)
        num_new = len(request.reply.token_ids) - num_before
        self.counts.add_step(num_new, len(added[0]))
        if num_before == 0:
            self.counts.prompt_tokens += len(request.prompt_ids)
            self.counts.cached_tokens += request.reply.num_cached
        if request.reply.finish_reason is not None:
            generation = request.reply.finish(self._decoder.engine_s)
            last = event or StreamEvent([], request.reply.take_new_text(), 0)
            event = last._replace(generation=generation)
        if event is not None:
            if request.state.is_traced and event.accept_length:
                event = event._replace(step=request.state.last_step)
            events.append(RequestEvent(number, event))

    def _finish(
        self, number: int, request: Request, error: MedusaError | None = None
    ) -> RequestEvent:
        """Ends a reply with what it has, by an error or because it was cancelled."""
        reason: FinishReason = "cancelled" if error is None else "error"
        generation = request.reply.finish(self._decoder.engine_s, reason)
        event = StreamEvent([], request.reply.take_new_text(), 0, generation)
        return RequestEvent(number, event, error)

    def _end_cancelled(self, events: list[RequestEvent]) -> None:
        cancelled = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        for place in range(len(self._running) - 1, -1, -1):
            number, request = self._running[place]
            if number in cancelled:
                events.append(self._finish(number, request))
                self._leave(place)
        if self._reading is not None and self._reading[0] in cancelled:
            self._end_reading(events)
        left = []
        for entry in sorted(self._waiting):
            if entry[1] in cancelled:
                events.append(self._finish(*entry[1:]))
            else:
                left.append(entry)
        self._waiting = left

    def _end_reading(self, events: list[RequestEvent], error: MedusaError | None = None) -> None:
        """Ends the request whose prompt is being read."""
        assert self._reading is not None
        reading, self._reading = self._reading, None
        self._slots.end_reading()
        events.append(self._finish(*reading, error))

    def _end_running(self, error: MedusaError | None, events: list[RequestEvent]) -> None:
        """Ends all running replies, whose rows may be invalid."""
        while self._running:
            number, request = self._running[-1]
            self._slots.forget(request.state.slot)
            events.append(self._finish(number, request, error))
            self._leave(len(self._running) - 1)
