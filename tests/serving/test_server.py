"""The end of a server, and the address on which it listens."""

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest
from support.servers.live_server import LiveServer, endless_server, wait_for

from medusa_trt.errors import ServingError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.server import open_socket, warn_if_open

LONG = {"prompt": "hello", "temperature": 0, "max_tokens": 400, "tree": "plain"}


def test_running_replies_end_after_the_server_is_told_to(tiny_bundle: Bundle) -> None:
    with endless_server(tiny_bundle, max_sequences=1, grace_s=20.0) as live:
        idle = httpx.Client(base_url=live.url)
        assert idle.get("/ready").status_code == 200
        with live.client.stream("POST", "/v1/completions", json={"stream": True} | LONG) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            live.server.should_exit = True
            wait_for(lambda: live.service.is_draining)
            wait_for(lambda: not can_connect(live))
            *_, last, done = filter(None, lines)
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx.ConnectError):
            idle.get("/ready")


def can_connect(live: LiveServer) -> bool:
    host, port = live.url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port))):
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "twice Ctrl-C"]
)
def test_a_signal_ends_the_command_without_a_traceback(
    tiny_bundle: Bundle, signals: list[signal.Signals]
) -> None:
    command = [sys.executable, "-m", "medusa_trt", "serve", str(tiny_bundle.path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = re.search(r"http://\S+", process.stderr.readline())
            assert url is not None
            thread = Thread(target=ask_for_long_reply, args=(url.group(),))
            thread.start()
            wait_for(
                lambda: "vllm:num_requests_running" in httpx.get(f"{url.group()}/metrics").text
            )
            for number in signals:
                process.send_signal(number)
            assert process.wait(60) == 0
            thread.join()
            left = process.stderr.read()
        finally:
            process.kill()  # Else Popen would wait for ever if something failed.
    assert "Traceback" not in left and "ERROR" not in left, left


def ask_for_long_reply(url: str) -> None:
    with suppress(httpx.TransportError):  # The server may have ended before.
        httpx.post(f"{url}/v1/completions", json=LONG | {"n": 8}, timeout=60)


def test_an_address_in_use_is_named() -> None:
    with open_socket(ServingOptions(port=0)) as opened:
        opened.listen()
        port = opened.getsockname()[1]
        with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1 port {port} "):
            open_socket(ServingOptions(port=port))


def test_a_server_for_everybody_is_warned_of(
    recwarn: pytest.WarningsRecorder, tmp_path: Path
) -> None:
    warn_if_open(ServingOptions(), "127.0.0.1")
    warn_if_open(ServingOptions(api_key_file=tmp_path / "keys"), "0.0.0.0")
    assert not recwarn.list
    warn_if_open(ServingOptions(host="0.0.0.0"), "0.0.0.0")
    assert "give --api-key-file" in str(recwarn.pop().message)
