"""Replies of a server: a full queue, too much time, engines that fail, and clients that leave."""

import asyncio
import json
import socket
from collections.abc import Iterator
from threading import Thread
from time import perf_counter
from typing import Any

import httpx
import pytest
from support.servers.live_server import LiveServer, endless_server, wait_for
from support.table_session import session_on_table

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.reply import Generation, GenerationStats, StreamEvent
from medusa_trt.runtime.scheduler import RequestEvent
from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.service import Service
from medusa_trt.serving.worker import Ticket

LONG = {"temperature": 0, "max_tokens": 400, "tree": "plain"}


@pytest.fixture(scope="module")
def slow(tiny_bundle: Bundle) -> Iterator[LiveServer]:
    """One reply at a time and one that waits, with small limits."""
    with endless_server(tiny_bundle, max_sequences=1, max_queue=1, timeout_s=30.0) as live:
        yield live


def begin_stream(live: LiveServer) -> tuple[httpx.Response, Iterator[str]]:
    """Asks for a long reply, and waits for its first part.

    The iterator has to be kept: httpx closes the stream with it.
    """
    request = live.client.build_request(
        "POST", "/v1/completions", json={"prompt": "hello", "stream": True} | LONG
    )
    reply = live.client.send(request, stream=True)
    lines = reply.iter_lines()
    assert next(lines).startswith("data: ")
    return reply, lines


def test_a_client_that_leaves_a_stream_ends_its_reply_within_a_step(slow: LiveServer) -> None:
    reply, _lines = begin_stream(slow)
    assert slow.session.scheduler.num_running == 1
    reply.close()
    slow.wait_until_idle()
    wait_for(lambda: slow.log[-1].get("finish") == ["cancelled"])
    assert slow.log[-1]["completion_tokens"] < 390
    assert slow.session.scheduler.is_idle


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_before_the_first_token_ends_its_reply(
    slow: LiveServer, is_streamed: bool
) -> None:
    running, _lines = begin_stream(slow)
    body = json.dumps({"prompt": "waits", "stream": is_streamed} | LONG)
    host, port = slow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as opened:
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        opened.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: slow.session.scheduler.num_waiting == 1)
    wait_for(lambda: slow.session.scheduler.num_waiting == 0)
    assert slow.session.scheduler.num_running == 1
    running.close()
    slow.wait_until_idle()


def test_a_full_queue_says_when_to_try_again(slow: LiveServer) -> None:
    running, _lines = begin_stream(slow)
    thread = Thread(target=slow.complete, kwargs=LONG | {"max_tokens": 2})
    thread.start()
    wait_for(lambda: slow.session.scheduler.num_waiting == 1)
    refused = slow.complete(**LONG)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    running.close()
    thread.join()
    assert slow.complete(**LONG | {"max_tokens": 2}).status_code == 200


def test_what_takes_too_long_is_ended(tiny_bundle: Bundle) -> None:
    with endless_server(tiny_bundle, max_sequences=1, timeout_s=0.3) as live:
        reply = live.complete(**LONG)
        assert reply.status_code == 408 and reply.json()["error"]["code"] == "timeout"
        streamed = live.complete(**LONG, stream=True)
        assert streamed.status_code == 200
        last = json.loads(streamed.text.split("\n\n")[-2].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"

        def send_slowly() -> Iterator[bytes]:
            yield b"{"
            wait_for(lambda: live.log[-1]["status"] == 408 and len(live.log) == 3)

        slow_body = live.client.post("/v1/completions", content=send_slowly())
        assert slow_body.status_code == 408
        live.wait_until_idle()


def test_an_engine_that_fails_is_the_servers_error(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with endless_server(tiny_bundle, max_sequences=1) as live:
        whole = live.complete(**LONG | {"max_tokens": 5}).json()["choices"][0]["text"]
        for error in (EngineError("the device is gone"), RuntimeError("a bug")):

            def fail(*_: object, raised: Exception = error) -> None:
                raise raised

            monkeypatch.setattr(live.session.decoder, "step", fail)
            reply = live.complete(**LONG)
            assert reply.status_code == 500
            assert reply.json()["error"]["type"] == "server_error"
            monkeypatch.undo()
        again = live.complete(**LONG | {"max_tokens": 5}).json()["choices"][0]["text"]
        assert again == whole
    assert "a bug" in capsys.readouterr().err


def test_the_time_to_try_again_does_not_count_the_queue_twice(tiny_bundle: Bundle) -> None:
    """It is the time that the replies in the queue take, one after the other."""
    stats = GenerationStats(
        prompt_tokens=2,
        cached_tokens=0,
        new_tokens=9,
        accept_lengths=(4, 4),
        prefill_s=0.5,
        decode_s=1.5,
        engine_s=1.0,
    )
    generation = Generation(token_ids=[], text="", finish_reason="length", stats=stats)
    end = RequestEvent(0, StreamEvent([], "", 0, generation))
    session, _ = session_on_table(tiny_bundle)
    with session:
        service = Service(session, ServingOptions(max_sequences=1, max_queue=2))
        for _ in range(3):
            request = session.make_request([1, 2], GenerationOptions(max_new_tokens=2))
            ticket = Ticket(request, 0, asyncio.Queue(), submitted_s=perf_counter() - 1000.0)
            service.worker.submit(ticket)
        for _ in range(100):
            service._note_end(ticket, end)
        with pytest.raises(ApiError) as refused:
            service._check_room(1)
    assert refused.value.status == 429 and refused.value.headers["retry-after"] == "6"


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2}, {"stop": "never"}])
def test_the_first_token_of_a_whole_reply_is_not_its_end(
    tiny_bundle: Bundle, fields: dict[str, Any]
) -> None:
    with endless_server(tiny_bundle) as live:
        live.complete(**LONG | fields | {"max_tokens": 25})
        wait_for(lambda: bool(live.log))
        (line,) = live.log
        assert 0 < line["first_token_ms"] < line["ms"] / 2
