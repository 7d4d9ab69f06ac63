"""The thread that owns the session: it alone adds, cancels and steps requests."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Literal

from medusa_trt.runtime.scheduler import Request, RequestEvent
from medusa_trt.runtime.session import MedusaSession

_LEAST_S = 0.01
"""Least seconds between two events, unless one is the first or the last of a reply, or is traced.

Waking the event loop and sending a chunk take as long as a tenth of a small model's step.
"""

CancelReason = Literal["", "disconnected", "timeout", "shutdown"]
"""Why a reply was cancelled; "" if nobody asked for it."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way through the worker; only the event loop's thread uses it.

    Attributes:
        request: the request.
        index: its place among the replies to one HTTP request.
        results: gets the events, with those of the other replies to the same HTTP request.
        submitted_s: when it was submitted, by `perf_counter`.
        number: the scheduler's number; only the worker's thread uses it.
        has_begun: whether its first event was handed out; only the worker's thread uses it.
        is_done: whether the reply has ended.
        reason: why it was cancelled.
    """

    request: Request
    index: int
    results: "asyncio.Queue[tuple[Ticket, RequestEvent]]"
    submitted_s: float = field(default_factory=perf_counter)
    number: int = -1
    has_begun: bool = False
    is_done: bool = False
    reason: CancelReason = ""


class Worker:
    """Runs the scheduler of a session in a thread."""

    def __init__(
        self,
        session: MedusaSession,
        *,
        note_end: Callable[[Ticket, RequestEvent], None],
        report_fault: Callable[[BaseException], None],
        note_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares the thread; `start` starts it.

        Args:
            session: nobody else may step it.
            note_end: gets the last event of each request, in the event loop's thread.
            report_fault: gets errors that nobody expected, in the worker's thread.
            note_step: is called after each step, in the worker's thread.
        """
        self._session = session
        self._note_step, self._note_end, self._report_fault = note_step, note_end, report_fault
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._held: dict[Ticket, RequestEvent] = {}
        self._handed_s = 0.0
        self._live: set[Ticket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    @property
    def num_live(self) -> int:
        """Number of replies that run or wait; for the event loop's thread."""
        return len(self._live)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread, which hands its events to this loop."""
        self._loop = loop
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Hands a request over; it joins at the next step."""
        self._live.add(ticket)
        self._orders.put(lambda: self._add(ticket))

    def cancel(self, ticket: Ticket, reason: CancelReason) -> None:
        """Ends a reply before the next step, unless it has ended."""
        if not ticket.is_done and not ticket.reason:
            ticket.reason = reason
            self._orders.put(lambda: self._session.scheduler.cancel(ticket.number))

    def cancel_all(self, reason: CancelReason) -> None:
        """Ends all replies before the next step."""
        for ticket in self._live:
            self.cancel(ticket, reason)

    def stop(self) -> None:
        """Ends the thread after its current step, and waits for it."""
        if self._thread.is_alive():
            self._orders.put(None)
            self._thread.join()

    def _add(self, ticket: Ticket) -> None:
        ticket.number = self._session.scheduler.add(ticket.request)
        self._tickets[ticket.number] = ticket

    def _run(self) -> None:
        scheduler = self._session.scheduler
        while self._follow_orders(waits=scheduler.is_idle):
            try:
                results = scheduler.step()
            except Exception as error:
                # The scheduler has ended the replies of this step, and its next step tells of it.
                self._report_fault(error)
                continue
            self._note_step()
            if results:
                self._hand_out(results)

    def _follow_orders(self, *, waits: bool) -> bool:
        """Does what the event loop has ordered; returns whether the thread is to go on."""
        while True:
            try:
                order = self._orders.get(waits)
            except Empty:
                return True
            if order is None:
                return False
            order()
            waits = False

    def _hand_out(self, results: list[RequestEvent]) -> None:
        """Hands events to the event loop, or keeps them for a moment; see `_LEAST_S`."""
        now = perf_counter()
        is_due = now - self._handed_s >= _LEAST_S
        for result in results:
            ticket = self._tickets[result.request_id]
            is_last = result.event.generation is not None
            if is_last:
                del self._tickets[ticket.number]
            is_due |= is_last or not ticket.has_begun or ticket.request.state.is_traced
            ticket.has_begun = True
            held = self._held.get(ticket)
            self._held[ticket] = result if held is None else _join(held, result)
        if is_due:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._deliver, self._held)
            self._held, self._handed_s = {}, now

    def _deliver(self, results: dict[Ticket, RequestEvent]) -> None:
        for ticket, result in results.items():
            if result.event.generation is not None:
                ticket.is_done = True
                self._live.discard(ticket)
                self._note_end(ticket, result)
            ticket.results.put_nowait((ticket, result))


def _join(first: RequestEvent, second: RequestEvent) -> RequestEvent:
    """Makes one event of two that follow each other; none of them describes its step."""
    event = second.event._replace(
        token_ids=first.event.token_ids + second.event.token_ids,
        text=first.event.text + second.event.text,
        accept_length=first.event.accept_length + second.event.accept_length,
    )
    return second._replace(event=event)
