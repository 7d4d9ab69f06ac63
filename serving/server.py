"""The server: it listens, and ends in order after SIGTERM or Ctrl-C."""

import asyncio
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from medusa_trt.errors import MedusaWarning, ServingError
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.app import make_app
from medusa_trt.serving.connection import Connection
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.warm_up import warm_up

_SEND_S = 5.0
"""Seconds that replies get to tell their clients that the grace period is over."""

_BACKLOG = 2048
"""Connections that wait until they are taken; uvicorn's own value."""

SWITCH_S = 0.0001
"""How long the scheduler's thread waits for the interpreter, at most, while another thread makes a
reply's text; Python's own value is 5 ms."""


class Server(uvicorn.Server):
    """A uvicorn server that lets running replies end, and whose process then exits with 0."""

    def __init__(self, app: FastAPI, options: ServingOptions, *, greeting: str = "") -> None:
        """Prepares the server.

        Args:
            app: made by `make_app`.
            options: the limits of time.
            greeting: a line for standard error as soon as clients can connect.
        """
        make_connection: Any = partial(Connection, client_timeout_s=options.client_timeout_s)
        super().__init__(
            uvicorn.Config(
                app,
                http=make_connection,
                ws="none",
                access_log=False,
                log_level="warning",
                lifespan="on",
                timeout_graceful_shutdown=int(options.grace_s + _SEND_S) + 2,
            )
        )
        self._service, self._options, self._greeting = app.state.service, options, greeting
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to answer."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._greeting:
            print(self._greeting, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server; see `ServingOptions.grace_s`."""
        self._service.is_draining = True
        loop, grace_s = asyncio.get_running_loop(), self._options.grace_s
        timers = (
            loop.call_later(grace_s, self._service.worker.cancel_all, "shutdown"),
            loop.call_later(grace_s + _SEND_S, self._abort_connections),
        )
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends the server at a signal; uvicorn's own would raise it again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Only the main thread gets signals.
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._end) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Ends the server; a second Ctrl-C waits neither for replies nor for their clients."""
        if self.should_exit and number == signal.SIGINT and self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.worker.cancel_all, "shutdown")
            self._loop.call_soon_threadsafe(self._loop.call_later, 0.5, self._abort_connections)
        self.should_exit = True


def open_socket(options: ServingOptions) -> socket.socket:
    """Takes the address, before the long work of opening a bundle; clients cannot connect yet.

    Raises:
        ServingError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        raise _address_error(options, error) from error
    return opened


def _listen(opened: socket.socket, options: ServingOptions) -> None:
    """Lets clients connect.

    Raises:
        ServingError: another server that took the same address has begun to listen.
    """
    try:
        opened.listen(_BACKLOG)
    except OSError as error:
        raise _address_error(options, error) from error


def _address_error(options: ServingOptions, error: OSError) -> ServingError:
    return ServingError(
        f"cannot listen on {options.host} port {options.port} ({error.strerror}): choose another "
        "--host or --port"
    )


def warn_if_open(options: ServingOptions, address: str) -> None:
    """Warns if other machines can use the server without a key."""
    if options.api_key_file is None and not ip_address(address).is_loopback:
        warnings.warn(
            f"everybody who reaches {address} can use this server: give --api-key-file, or leave "
            "--host out",
            MedusaWarning,
            stacklevel=2,
        )


def serve(session: MedusaSession, options: ServingOptions, opened: socket.socket) -> None:
    """Warms the session up, then answers requests until SIGTERM or Ctrl-C.

    Args:
        session: has `max_sequences` slots.
        options: the limits and the keys.
        opened: made by `open_socket`.

    Raises:
        ServingError: the file of keys cannot be read, or the address was taken meanwhile.
        EngineError: the engine failed.
    """
    warm_up(session)
    app = make_app(session, options)
    host, port, *_ = opened.getsockname()
    shown = f"[{host}]" if ":" in host else host
    if typical := session.bundle.manifest.describe_typical():
        print(f"calibrated for acceptance typical: {typical}", file=sys.stderr)
    greeting = f"{app.state.service.model_name} on http://{shown}:{port}"
    sys.setswitchinterval(SWITCH_S)
    _listen(opened, options)
    Server(app, options, greeting=greeting).run(sockets=[opened])
