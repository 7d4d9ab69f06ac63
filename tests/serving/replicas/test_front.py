"""The front of several replicas, over real connections; the replicas are applications in place."""

import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from support.servers.live_server import LiveServer, endless_server, wait_for

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.replicas.calls import Call, answer_call
from medusa_trt.serving.replicas.front import Front, Replicas
from medusa_trt.serving.server import open_socket


class LostError(Exception):
    """A replica is gone."""


class FullError(Exception):
    """Too many requests wait."""


class StandIn:
    """What Ray is elsewhere: it lets one application answer, and may lose it.

    Attributes:
        live: the server behind the front.
        num_losses: so many next replies are lost.
        num_messages: messages of a reply before it is lost.
        is_full: whether too many requests wait.
        num_calls: number of calls so far.
    """

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.num_losses = self.num_messages = self.num_calls = 0
        self.is_full = False

    async def answer(self, key: str, call: Call) -> AsyncGenerator[Any, None]:
        self.num_calls += 1
        if self.is_full:
            raise FullError
        num_left = self.num_messages
        is_lost = self.num_losses > 0
        self.num_losses -= is_lost
        async for message in answer_call(self.live.server.config.app, call):  # type: ignore[arg-type]
            if is_lost and not num_left:
                raise LostError
            num_left -= 1
            yield message

    async def measure(self) -> list[tuple[str, str]]:
        if self.is_full:
            return []
        page = self.live.service.metrics.render().decode()
        return [("one", page), ("two", page)]


@pytest.fixture(scope="module")
def behind(tiny_bundle: Bundle) -> Iterator[LiveServer]:
    with endless_server(tiny_bundle, max_sequences=2) as live:
        yield live


@contextmanager
def running_front(stand_in: StandIn) -> Iterator[httpx.Client]:
    options = ServingOptions(port=0, max_body_bytes=5000)
    replicas = Replicas(
        answer=stand_in.answer,
        measure=stand_in.measure,
        lost_errors=(LostError,),
        full_errors=(FullError,),
    )
    front = Front(replicas, options)
    server = uvicorn.Server(uvicorn.Config(front, log_level="critical", lifespan="off"))
    with open_socket(options) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        wait_for(lambda: server.started)
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30.0) as client:
            yield client
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def stand_in(behind: LiveServer) -> StandIn:
    return StandIn(behind)


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[httpx.Client]:
    with running_front(stand_in) as client:
        yield client


BODY: dict[str, Any] = {"prompt": "hello", "max_tokens": 12, "temperature": 0, "tree": "plain"}


def test_replies_are_those_of_the_replica(client: httpx.Client, behind: LiveServer) -> None:
    direct = behind.complete(**BODY)
    through = client.post("/v1/completions", json=BODY)
    assert through.status_code == 200 and "x-replica-request-id" in through.headers
    assert through.json()["choices"] == direct.json()["choices"]
    streamed = client.post("/v1/completions", json=BODY | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    wrong = client.post("/v1/completions?x=1", json={"prompt": "a", "n": 0})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "n"
    assert client.get("/v1/models").json() == behind.client.get("/v1/models").json()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_lost_before_its_reply_is_sent_again(
    client: httpx.Client, stand_in: StandIn, is_streamed: bool
) -> None:
    """The start of a reply, which is the first message, is none of its parts."""
    stand_in.num_losses, stand_in.num_messages = 2, 1
    reply = client.post("/v1/completions", json=BODY | {"stream": is_streamed})
    assert reply.status_code == 200 and stand_in.num_calls == 3
    assert "error" not in reply.text
    stand_in.num_losses = 3
    reply = client.post("/v1/completions", json=BODY | {"stream": is_streamed})
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "replica_lost"
    assert stand_in.num_calls == 6
    stand_in.live.wait_until_idle()


def test_a_stream_that_is_cut_says_so(client: httpx.Client, stand_in: StandIn) -> None:
    stand_in.num_losses, stand_in.num_messages = 1, 4
    reply = client.post("/v1/completions", json=BODY | {"stream": True})
    *parts, last = [line for line in reply.text.split("\n\n") if line]
    assert reply.status_code == 200 and len(parts) == 3 and stand_in.num_calls == 1
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "replica_lost" and error["type"] == "server_error"
    stand_in.live.wait_until_idle()


def test_a_client_that_leaves_frees_its_row(client: httpx.Client, behind: LiveServer) -> None:
    fields = BODY | {"stream": True, "max_tokens": 400}
    with client.stream("POST", "/v1/completions", json=fields) as reply:
        assert next(reply.iter_lines()).startswith("data: ")
        assert behind.session.scheduler.num_running == 1
    wait_for(lambda: behind.log[-1].get("finish") == ["cancelled"])
    behind.wait_until_idle()


def test_what_replicas_cannot_take_is_refused(client: httpx.Client, stand_in: StandIn) -> None:
    stand_in.is_full = True
    reply = client.post("/v1/completions", json=BODY)
    assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
    assert reply.json()["error"]["code"] == "queue_full"
    large = client.post("/v1/completions", content=b"a" * 6000)
    assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"
    assert client.get("/ready").status_code == 503
    assert client.get("/health").json() == {"status": "ok"}


def test_measurements_name_their_replica(client: httpx.Client) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    page = client.get("/metrics").text
    for name in ("one", "two"):
        labels = f'engine="0",model_name="tiny-llama",replica="{name}"'
        assert f"vllm:num_requests_running{{{labels}}} 0.0" in page
    assert page.count("# TYPE vllm:num_requests_running gauge") == 1
    assert page.count('le="+Inf"') % 2 == 0
