"""A server in a thread, with real connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from support.table_session import session_on_table, with_eos

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.app import make_app
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.server import Server, open_socket
from medusa_trt.serving.service import Service


@dataclass
class LiveServer:
    """A running server.

    Attributes:
        url: where it listens.
        client: a client of it.
        service: what is behind its routes.
        session: what makes its replies.
        log: what it logged.
        server: the program that listens.
    """

    url: str
    client: httpx.Client
    service: Service
    session: MedusaSession
    server: Server
    log: list[dict[str, Any]] = field(default_factory=list)

    def chat(self, **fields: Any) -> httpx.Response:
        """Asks for a reply to a short conversation."""
        body = {"messages": [{"role": "user", "content": "hello"}]} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, **fields: Any) -> httpx.Response:
        """Asks for the end of a short text."""
        return self.client.post("/v1/completions", json={"prompt": "hello"} | fields)

    def wait_until_idle(self) -> None:
        """Waits until no reply runs or waits."""
        wait_for(lambda: self.service.worker.num_live == 0)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Waits until a condition holds.

    Raises:
        AssertionError: it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.01)


@contextmanager
def running_server(
    session: MedusaSession, *, send_buffer: int | None = None, **options: Any
) -> Iterator[LiveServer]:
    """Serves a session until the end of the block.

    `send_buffer` is how many bytes the system keeps for a client that does not read.
    """
    chosen = ServingOptions(**{"port": 0, "grace_s": 2.0} | options)
    log: list[dict[str, Any]] = []
    app = make_app(session, chosen, log=log.append)
    server = Server(app, chosen)
    with open_socket(chosen) as opened:
        if send_buffer is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            with httpx.Client(base_url=url, timeout=30.0) as client:
                yield LiveServer(url, client, app.state.service, session, server, log)
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()


@contextmanager
def endless_server(
    bundle: Bundle, *, max_sequences: int = 2, **options: Any
) -> Iterator[LiveServer]:
    """Serves replies that no end token ends, from a slow engine."""
    session, _ = session_on_table(
        with_eos(bundle, []), max_length=500, batch_size=max_sequences, takes_new_trees=True
    )
    with (
        slow_steps(session, 0.02),
        session,
        running_server(session, max_sequences=max_sequences, **options) as live,
    ):
        yield live


@contextmanager
def slow_steps(session: MedusaSession, seconds: float) -> Iterator[None]:
    """Makes each step of a session wait first, so that a long reply lasts for seconds."""
    engine = session.engine
    verify = engine.verify

    def verify_slowly(*args: Any, **options: Any) -> VerifyOutputs:
        time.sleep(seconds)
        return verify(*args, **options)

    engine.verify = verify_slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.verify = verify  # type: ignore[method-assign]
