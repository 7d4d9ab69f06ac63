"""`medusa-trt serve`: the process listens, and ends in order."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from medusa_trt.cli import main as cli
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.server import open_socket


@contextmanager
def served(bundle: Bundle, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs the command; yields the process and its address."""
    command = [sys.executable, "-m", "medusa_trt", "serve", str(bundle.path), "--port", "0"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        address = re.search(r"http://\S+", first)
        assert address, first + process.stderr.read()
        with httpx.Client(transport=httpx.HTTPTransport(retries=50)) as client:
            client.get(f"{address[0]}/ready", timeout=30.0)
        yield process, address[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_reply_end(tiny_bundle: Bundle, number: signal.Signals) -> None:
    fields = {"prompt": "a", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
    with served(tiny_bundle) as (process, url):
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=fields | {"stream": True, "tree": "plain"}
        ) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(number)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0


def test_a_reply_that_outlives_the_grace_period_says_so(tiny_bundle: Bundle) -> None:
    fields = {"prompt": "a", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    with served(tiny_bundle, "--grace-s", "0") as (process, url):
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=fields | {"stream": True, "tree": "plain"}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            *_, last = [line for line in lines if line]
        assert last == "data: [DONE]" or json.loads(last[6:])["error"]["code"] == "shutting_down"
        assert process.wait(20) == 0


def test_a_port_in_use_is_one_line(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with open_socket(ServingOptions(port=0)) as opened:
        opened.listen()
        port = str(opened.getsockname()[1])
        assert cli.main(["serve", str(tiny_bundle.path), "--port", port]) == 2
    assert re.fullmatch(
        rf"error: cannot listen on 127\.0\.0\.1 port {port} \(.*\): choose .*\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port is 70000: it must be between 0 and 65535"),
        (["--max-sequences", "0"], "--max-sequences is 0: it must be at least 1"),
        (["--api-key-file", "none-there"], "none-there"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_wrong_options_end_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "none-there", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_an_empty_file_of_keys_is_no_open_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n")
    assert cli.main(["serve", "none-there", "--api-key-file", str(keys)]) == 2
    assert "holds no key" in capsys.readouterr().err
