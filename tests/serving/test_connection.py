"""Clients that wait, do not read or send no HTTP."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.servers.live_server import LiveServer, endless_server, wait_for

from medusa_trt.runtime.bundle import Bundle

LONG = {"prompt": "hello", "temperature": 0, "max_tokens": 400, "tree": "plain"}


@contextmanager
def connected(live: LiveServer, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.socket() as opened:
        if receive_buffer is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.settimeout(20)
        opened.connect((host, int(port)))
        yield opened


def receive_all(opened: socket.socket) -> bytes:
    return b"".join(iter(lambda: opened.recv(65536), b""))


def make_post(**body: object) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@pytest.fixture(scope="module")
def hasty(tiny_bundle: Bundle) -> Iterator[LiveServer]:
    """A server that gives its clients half a second, and has small buffers."""
    with endless_server(tiny_bundle, client_timeout_s=0.5, send_buffer=4096) as live:
        yield live


@pytest.mark.parametrize("logprobs", [None, 5])
def test_a_client_that_does_not_read_loses_its_connection_and_its_rows(
    hasty: LiveServer, logprobs: int | None
) -> None:
    num_lines = len(hasty.log)
    with connected(hasty, receive_buffer=1024) as opened:
        opened.sendall(make_post(stream=True, logprobs=logprobs, **LONG))
        wait_for(lambda: len(hasty.log) > num_lines)
        assert hasty.log[-1]["finish"] == ["cancelled"]
        assert hasty.service.worker.num_live == 0 and hasty.session.scheduler.is_idle
        wait_for(lambda: not hasty.server.server_state.connections)


def test_an_unread_whole_reply_does_not_keep_its_connection(hasty: LiveServer) -> None:
    with connected(hasty, receive_buffer=1024) as opened:
        opened.sendall(make_post(logprobs=20, **LONG))
        wait_for(lambda: hasty.log[-1].get("finish") == ["length"])
        wait_for(lambda: not hasty.server.server_state.connections)


@pytest.mark.parametrize(
    ("begin", "is_second"),
    [
        (b"", False),
        (b"POST /v1/compl", False),
        (b"POST /v1/compl", True),
        (b"GET /health HTTP/1.1\r\nx: ", True),
    ],
)
def test_headers_have_to_arrive_in_time(hasty: LiveServer, begin: bytes, is_second: bool) -> None:
    with connected(hasty) as opened:
        if is_second:
            opened.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert opened.recv(65536).startswith(b"HTTP/1.1 200")
        opened.sendall(begin)
        head, _, content = receive_all(opened).rpartition(b"\r\n\r\n")
        assert b"HTTP/1.1 408" in head
        error = json.loads(content)["error"]
        assert error["type"] == "timeout_error" and error["code"] == "timeout"


def test_what_is_no_http_gets_an_error_of_the_same_shape(hasty: LiveServer) -> None:
    with connected(hasty) as opened:
        opened.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        head, _, content = receive_all(opened).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(content)["error"]["code"] == "invalid_http"
