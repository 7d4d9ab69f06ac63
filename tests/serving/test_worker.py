"""The thread of the scheduler: replies, cancelled replies, faults and the end."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from support.stand_ins.table_engine import TableEngine
from support.table_session import session_on_table, with_eos

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.scheduler import Request, RequestEvent
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving import worker
from medusa_trt.serving.worker import Ticket, Worker

LONG = GenerationOptions(max_new_tokens=150)


class Opened:
    """A worker of a session on an engine whose outputs can be predicted.

    Attributes:
        ended: tickets whose last event the worker has noted, with the reasons of their ends.
        faults: errors that nobody expected.
        num_steps: steps that the worker has noted.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.session: MedusaSession
        self.engine: TableEngine
        self.session, self.engine = session_on_table(
            with_eos(bundle, []), batch_size=2, takes_new_trees=True
        )
        self.ended: list[tuple[Ticket, str]] = []
        self.faults: list[BaseException] = []
        self.num_steps = 0
        self.worker = Worker(
            self.session,
            note_end=self._note_end,
            report_fault=self.faults.append,
            note_step=self._note_step,
        )

    def _note_end(self, ticket: Ticket, result: RequestEvent) -> None:
        assert result.event.generation is not None
        self.ended.append((ticket, result.event.generation.finish_reason))

    def _note_step(self) -> None:
        self.num_steps += 1

    def make_ticket(self, prompt: list[int], options: GenerationOptions) -> Ticket:
        request: Request = self.session.make_request(prompt, options)
        return Ticket(request, 0, asyncio.Queue())

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs the worker and, in its event loop, this work."""

        async def run_both() -> None:
            self.worker.start(asyncio.get_running_loop())
            await asyncio.wait_for(work(), 60)

        asyncio.run(run_both())
        assert self.worker.is_alive
        self.worker.stop()
        self.worker.stop()
        assert not self.worker.is_alive


@pytest.fixture
def opened(tiny_bundle: Bundle) -> Iterator[Opened]:
    opened = Opened(tiny_bundle)
    yield opened
    opened.worker.stop()
    opened.session.close()


async def wait_for_end(ticket: Ticket) -> tuple[list[int], Generation]:
    tokens: list[int] = []
    while True:
        other, result = await ticket.results.get()
        assert other is ticket
        tokens += result.event.token_ids
        if result.event.generation is not None:
            return tokens, result.event.generation


def test_more_replies_than_slots_are_those_of_the_session(opened: Opened) -> None:
    prompts, options = [[1, 2], [3], [4, 5, 6], [7]], GenerationOptions(max_new_tokens=12)
    expected = [opened.session.generate(prompt, options).token_ids for prompt in prompts]

    async def work() -> None:
        tickets = [opened.make_ticket(prompt, options) for prompt in prompts]
        for ticket in tickets:
            opened.worker.submit(ticket)
        assert opened.worker.num_live == 4
        for ticket, tokens in zip(tickets, expected, strict=True):
            streamed, generation = await wait_for_end(ticket)
            assert streamed == generation.token_ids == tokens and ticket.is_done
        assert opened.worker.num_live == 0 and opened.num_steps > 0

    opened.run(work)
    assert sorted(reason for _, reason in opened.ended) == ["length"] * 4


@pytest.mark.parametrize("is_traced", [False, True])
def test_quick_steps_share_an_event_unless_they_are_described(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, is_traced: bool
) -> None:
    monkeypatch.setattr(worker, "_LEAST_S", 1e9)
    options = GenerationOptions(max_new_tokens=30)
    expected = opened.session.generate([1, 2], options)
    assert len(expected.stats.accept_lengths) > 1

    async def work() -> None:
        # The first events of all replies are at once, so a first reply begins the interval.
        for place in range(2):
            ticket = opened.make_ticket([1, 2], options)
            ticket.request.state.is_traced = is_traced
            opened.worker.submit(ticket)
            events = [(await ticket.results.get())[1].event]
            while events[-1].generation is None:
                events.append((await ticket.results.get())[1].event)
            assert [token for each in events for token in each.token_ids] == expected.token_ids
            assert "".join(each.text for each in events) == expected.text
            if is_traced:
                assert len(events) > len(expected.stats.accept_lengths)
                assert all(each.step is not None for each in events[1:-1])
            elif place:
                assert len(events) == 2

    opened.run(work)


def test_a_cancelled_reply_ends_and_the_first_reason_stays(opened: Opened) -> None:
    async def work() -> None:
        ticket, other = (opened.make_ticket([number], LONG) for number in (1, 2))
        for each in (ticket, other):
            opened.worker.submit(each)
        await ticket.results.get()
        opened.worker.cancel(ticket, "timeout")
        opened.worker.cancel(ticket, "disconnected")
        _, generation = await wait_for_end(ticket)
        assert generation.finish_reason == "cancelled" and ticket.reason == "timeout"
        opened.worker.cancel(ticket, "disconnected")
        opened.worker.cancel_all("shutdown")
        _, generation = await wait_for_end(other)
        assert generation.finish_reason in ("cancelled", "length")
        assert other.reason == ("shutdown" if generation.finish_reason == "cancelled" else "")
        assert ticket.reason == "timeout"

    opened.run(work)
    assert opened.session.scheduler.is_idle


def test_an_engine_that_fails_ends_its_replies_and_the_next_one_is_made(opened: Opened) -> None:
    async def work() -> None:
        failing = opened.make_ticket([1, 2], LONG)
        opened.engine.fail_at_step = opened.engine.num_steps + 3
        opened.worker.submit(failing)
        _, generation = await wait_for_end(failing)
        assert generation.finish_reason == "error"
        after = opened.make_ticket([1, 2], GenerationOptions(max_new_tokens=4))
        opened.worker.submit(after)
        _, generation = await wait_for_end(after)
        assert generation.finish_reason == "length"

    opened.run(work)
    assert not opened.faults


def test_an_unexpected_error_is_reported_and_the_thread_goes_on(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, fault = opened.session.decoder.step, ZeroDivisionError("a bug")

    def fail_once(*_: object, **__: object) -> None:
        monkeypatch.setattr(opened.session.decoder, "step", step)
        raise fault

    monkeypatch.setattr(opened.session.decoder, "step", fail_once)

    async def work() -> None:
        tickets = [opened.make_ticket([number], LONG) for number in (1, 2)]
        opened.worker.submit(tickets[0])
        _, generation = await wait_for_end(tickets[0])
        assert generation.finish_reason == "cancelled" and tickets[0].reason == ""
        opened.worker.submit(tickets[1])
        _, generation = await wait_for_end(tickets[1])
        assert generation.finish_reason == "length"

    opened.run(work)
    assert opened.faults == [fault]
