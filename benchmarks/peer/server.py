"""A server with OpenAI's API: its process, and clients that measure its answers."""

import contextlib
import http.client
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from peer.environments import PeerError
from peer.process import MeasuredProcess
from peer.workers.loop import read_peak_memory_bytes

_START_S = 600.0
"""Time in which a server must be ready."""

_ANSWER_S = 600.0
"""Time in which a server must send something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReply:
    """What a client saw of one reply, in seconds since the start of the round.

    Attributes:
        num_tokens: completion tokens, as the server counts them.
        sent_s: time of the request.
        first_s: time of the first text.
        last_s: time of the last text.
    """

    num_tokens: int
    sent_s: float
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRound:
    """The replies of one server to all prompts of one round.

    Attributes:
        contender: name of the server.
        clients: requests at the same time; each client sends the next one when its reply has ended.
        round: number of the round, from 0.
        replies: the replies, in the order of the prompts.
        duration_s: seconds from the first request to the last text.
        peak_memory_bytes: largest resident memory so far, the sum over the server's processes.
    """

    contender: str
    clients: int
    round: int
    replies: list[ServerReply]
    duration_s: float
    peak_memory_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all replies over the time of the round."""
        return sum(reply.num_tokens for reply in self.replies) / self.duration_s

    @property
    def first_token_s(self) -> list[float]:
        """Seconds from each request to its first text."""
        return [reply.first_s - reply.sent_s for reply in self.replies]

    @property
    def between_tokens_s(self) -> list[float]:
        """Mean seconds between the tokens of each reply."""
        return [
            (reply.last_s - reply.first_s) / (reply.num_tokens - 1)
            for reply in self.replies
            if reply.num_tokens > 1
        ]


class ServerProcess(MeasuredProcess):
    """A server that lists its model at /v1/models."""

    def __init__(self, name: str, command: str, log: Path) -> None:
        """Starts the server and waits until it lists its model.

        Args:
            name: name of the contender.
            command: the command line; `{port}` in it becomes a free port.
            log: file for its output.

        Raises:
            PeerError: the server cannot start.
        """
        self.name = name
        self._port = _find_free_port()
        words = shlex.split(command.replace("{port}", str(self._port)))
        super().__init__(words, log, stdin=subprocess.DEVNULL)
        try:
            self._model = self._wait_for_model()
        except BaseException:
            self._end()
            raise
        self._stop()

    def answer(
        self, prompts: Sequence[list[dict[str, str]]], max_tokens: int, clients: int, round_: int
    ) -> ServerRound:
        """Sends all prompts, `clients` at the same time, and measures the streamed replies.

        Raises:
            PeerError: the server died, or it answered with an error.
        """
        self._go_on()
        self._stream(prompts[0][-1:], 2, 0.0)  # Memory that was given back is read again.
        start_s = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            futures = [
                pool.submit(self._stream, messages, max_tokens, start_s) for messages in prompts
            ]
            replies = [future.result() for future in futures]
        self._stop()
        return ServerRound(
            contender=self.name,
            clients=clients,
            round=round_,
            replies=replies,
            duration_s=max(reply.last_s for reply in replies),
            peak_memory_bytes=_read_group_memory(self.pid),
        )

    def _stream(
        self, messages: Sequence[dict[str, str]], max_tokens: int, start_s: float
    ) -> ServerReply:
        """Streams one reply; its lines are parsed after its end, which takes no time from it."""
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        lines = []
        try:
            sent_s = time.perf_counter() - start_s
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            if response.status != 200:
                text = response.read().decode(errors="replace")
                raise PeerError(f"{self.name} answered {response.status}: {text[:200]}")
            for line in response:
                lines.append((time.perf_counter() - start_s, line))
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"{self.name}: {error} (log: {self._log})") from error
        finally:
            connection.close()
        return self._read_reply(sent_s, lines)

    def _read_reply(self, sent_s: float, lines: Sequence[tuple[float, bytes]]) -> ServerReply:
        times, num_tokens = [], 0
        for time_s, line in lines:
            if not line.startswith(b"data: {"):
                continue
            chunk: dict[str, Any] = json.loads(line[len(b"data: ") :])
            if "error" in chunk:
                raise PeerError(f"{self.name}: {chunk['error']}")
            if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                times.append(time_s)
            if chunk.get("usage"):
                num_tokens = chunk["usage"]["completion_tokens"]
        if not times or not num_tokens:
            raise PeerError(f"{self.name} sent no text, or did not count its tokens")
        return ServerReply(num_tokens=num_tokens, sent_s=sent_s, first_s=times[0], last_s=times[-1])

    def _wait_for_model(self) -> str:
        """Waits until the server answers; returns the name of its first model."""
        for attempt in count():
            if self._process.poll() is not None:
                raise PeerError(self._describe_death())
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            try:
                connection.request("GET", "/v1/models")
                response = connection.getresponse()
                text = response.read()
                if response.status == 200:
                    name: str = json.loads(text)["data"][0]["id"]
                    return name
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            if attempt * 0.2 > _START_S:
                break
            time.sleep(0.2)
        raise PeerError(f"{self.name} was not ready after {_START_S:.0f} s (log: {self._log})")


def _read_group_memory(group: int) -> int:
    """Adds up the peak resident memory, in bytes, of the processes of a group."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):  # It has ended.
                if os.getpgid(int(folder.name)) == group:
                    total += read_peak_memory_bytes(folder)
    return total


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
