"""Replies to HTTP requests, made by the worker: admission, cancelling and ends."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter

from starlette.types import Receive

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation, StreamEvent
from medusa_trt.runtime.scheduler import Request, RequestEvent
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.errors import ApiError, error_from_medusa
from medusa_trt.serving.log import RequestRecord, write_fault
from medusa_trt.serving.metrics import Metrics, count_accepted
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.requests.schemas import ReplyFields
from medusa_trt.serving.tools.forms import ToolTemplate
from medusa_trt.serving.worker import CancelReason, Ticket, Worker

_WEIGHT = 0.1
"""Weight of a new reply in the running mean of the time that a reply takes."""

_MAX_RETRY_S = 60

_CLIENT_FIELDS = {"user", "safety_identifier", "prompt_cache_key"}
"""Fields that name a client or its user; they change no reply and are logged."""


class Service:
    """One session behind a worker, for the routes of the application.

    Attributes:
        session: makes prompts and options into requests; it is stepped by the worker alone.
        options: the limits.
        model_name: what clients call the model.
        tool_template: what the model's chat template does with tools.
        metrics: the measurements.
        worker: runs the requests.
        is_draining: whether the server ends, and takes no new requests.
    """

    def __init__(self, session: MedusaSession, options: ServingOptions) -> None:
        self.session, self.options = session, options
        self.model_name = options.model_name or session.bundle.manifest.model.name
        self.tool_template = ToolTemplate(session.text)
        self.metrics = Metrics(session, self.model_name)
        self.worker = Worker(
            session,
            note_step=self.metrics.note_step,
            note_end=self._note_end,
            report_fault=write_fault,
        )
        self.is_draining = False
        self._num_reserved = 0
        self._mean_s = 1.0

    def check_model(self, name: str | None) -> None:
        """Checks that a request means this model; None is this model.

        Raises:
            ApiError: it means another one.
        """
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"there is no model {name!r} here: use {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def start_replies(
        self,
        body: ReplyFields,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        record: RequestRecord,
        shown_ids: Sequence[int] = (),
    ) -> "Replies":
        """Hands requests over: `n` for each prompt; reply i is drawn with the seed plus i.

        The text of the replies shows the special tokens `shown_ids`.

        Raises:
            ApiError: an option or a prompt cannot be used, or there are too many requests.
        """
        num_replies = len(prompts) * body.n
        record.client = body.model_dump(include=_CLIENT_FIELDS, exclude_none=True)
        record.is_streamed, record.num_choices = body.stream, num_replies
        record.prompt_tokens = sum(map(len, prompts))
        self._check_room(num_replies)
        self._num_reserved += num_replies
        try:
            # A grammar may take seconds to compile, in which other replies go on.
            requests = await asyncio.to_thread(
                self._make_requests, prompts, options, body, shown_ids
            )
        except MedusaError as error:
            raise error_from_medusa(error, body) from error
        finally:
            self._num_reserved -= num_replies
        return Replies(self, requests, record)

    def _make_requests(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        body: ReplyFields,
        shown_ids: Sequence[int],
    ) -> list[Request]:
        requests = []
        for prompt_ids in prompts:
            for choice in range(body.n):
                seed = options.sampling.seed
                if seed is not None:
                    seed = (seed + choice) % 2**64
                changed = replace(options, sampling=replace(options.sampling, seed=seed))
                request = self.session.make_request(
                    prompt_ids, changed, streamed=body.stream, shown_ids=shown_ids
                )
                request.state.is_traced = body.steps
                requests.append(request)
        return requests

    def _check_room(self, num_replies: int) -> None:
        options = self.options
        limit = options.max_sequences + options.max_queue
        if self.is_draining:
            raise ApiError(503, "the server ends: use another one", code="shutting_down")
        if num_replies > limit:
            raise ApiError(
                400,
                f"{num_replies} replies to one request: this server takes {limit}, give a smaller "
                "n or fewer prompts",
                param="n",
                code="invalid_value",
            )
        num_live = self.worker.num_live + self._num_reserved
        if num_live + num_replies > limit:
            self.metrics.note_rejection(num_replies)
            wait_s = math.ceil(self._mean_s * num_live / options.max_sequences)
            raise ApiError(
                429,
                f"{num_live} replies run or wait, the limit is {limit}: try again later",
                code="queue_full",
                headers={"retry-after": str(min(max(wait_s, 1), _MAX_RETRY_S))},
            )

    def _note_end(self, ticket: Ticket, result: RequestEvent) -> None:
        stats = None if result.event.generation is None else result.event.generation.stats
        if stats is not None and stats.new_tokens:
            # Without the wait before the prompt, which others in the queue have at the same time.
            self._mean_s += _WEIGHT * (stats.prefill_s + stats.decode_s - self._mean_s)
        self.metrics.note_end(ticket, result)


class Replies:
    """The replies to one HTTP request.

    Attributes:
        requests: a request for each reply.
        prompt_tokens: tokens of all prompts.
    """

    def __init__(
        self, service: Service, requests: Sequence[Request], record: RequestRecord
    ) -> None:
        """Submits the requests."""
        self.requests, self.prompt_tokens = requests, record.prompt_tokens
        self._service, self._record = service, record
        self._results: asyncio.Queue[tuple[Ticket, RequestEvent]] = asyncio.Queue()
        self._tickets = [
            Ticket(request, index, self._results) for index, request in enumerate(requests)
        ]
        for ticket in self._tickets:
            service.worker.submit(ticket)

    @asynccontextmanager
    async def watch_client(self, receive: Receive) -> AsyncIterator[None]:
        """Cancels the replies when the client leaves, their time is over, or the block ends."""
        loop = asyncio.get_running_loop()
        left_s = self._service.options.timeout_s - (perf_counter() - self._record.start_s)
        timer = loop.call_later(max(left_s, 0.0), self._cancel, "timeout")
        watcher = loop.create_task(_call_at_disconnect(receive, self._cancel))
        try:
            yield
        finally:
            timer.cancel()
            watcher.cancel()
            self._cancel("disconnected")

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """Yields the events of all replies, each with the index of its reply.

        Raises:
            ApiError: a reply ended by an error or was cancelled.
        """
        num_left = len(self._tickets)
        while num_left:
            ticket, result = await self._results.get()
            generation = result.event.generation
            self._note_first_token(result.event)
            if generation is not None:
                num_left -= 1
                self._note_end(generation)
                _check_end(ticket, result, generation)
            yield ticket.index, result.event

    async def finish(self) -> list[Generation]:
        """Waits for all replies; see `events`."""
        done: dict[int, Generation] = {}
        async for index, event in self.events():
            if event.generation is not None:
                done[index] = event.generation
        return [done[index] for index in range(len(done))]

    def _cancel(self, reason: CancelReason) -> None:
        for ticket in self._tickets:
            self._service.worker.cancel(ticket, reason)

    def _note_first_token(self, event: StreamEvent) -> None:
        """Notes the time of the first token of all; a whole reply has one event, at its end."""
        generation = event.generation
        if generation is not None and not generation.stats.new_tokens:
            return
        decode_s = 0.0 if generation is None or event.token_ids else generation.stats.decode_s
        first_s = perf_counter() - self._record.start_s - decode_s
        known_s = self._record.first_token_s
        self._record.first_token_s = first_s if known_s is None else min(known_s, first_s)

    def _note_end(self, generation: Generation) -> None:
        record, stats = self._record, generation.stats
        record.cached_tokens += stats.cached_tokens
        record.completion_tokens += stats.new_tokens
        record.accepted_tokens += count_accepted(stats)
        record.finish_reasons.append(generation.finish_reason)


async def _call_at_disconnect(receive: Receive, call: Callable[[CancelReason], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call("disconnected")


def _check_end(ticket: Ticket, result: RequestEvent, generation: Generation) -> None:
    """Raises the error by which a reply ended.

    Raises:
        ApiError: the reply was cancelled or failed.
    """
    if result.error is not None:
        raise error_from_medusa(result.error) from result.error
    if generation.finish_reason != "cancelled":
        return
    match ticket.reason:
        case "disconnected":
            raise ApiError(499, "the client has left", code="disconnected")
        case "timeout":
            message = "the reply took longer than this server allows: ask for fewer tokens"
            raise ApiError(408, message, code="timeout")
        case "shutdown":
            raise ApiError(503, "the server has ended: use another one", code="shutting_down")
        case _:
            message = "the step failed: the server's log has the error"
            raise ApiError(500, message, code="engine_failed")
