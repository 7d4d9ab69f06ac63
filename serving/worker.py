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
        is_done: whether the reply has ended.
        reason: why it was cancelled.
    """

    request: Request
    index: int
    results: "asyncio.Queue[tuple[Ticket, RequestEvent]]"
    submitted_s: float = field(default_factory=perf_counter)
    number: int = -1
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
        pairs = [(self._tickets[result.request_id], result) for result in results]
        for ticket, result in pairs:
            if result.event.generation is not None:
                del self._tickets[ticket.number]
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, pairs)

    def _deliver(self, pairs: list[tuple[Ticket, RequestEvent]]) -> None:
        for ticket, result in pairs:
            if result.event.generation is not None:
                ticket.is_done = True
                self._live.discard(ticket)
                self._note_end(ticket, result)
            ticket.results.put_nowait((ticket, result))
