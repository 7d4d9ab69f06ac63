"""The application on a Ray cluster of two replicas, of which one is killed."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers.live_server import wait_for

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

PYTHON = os.environ.get("RAY_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="RAY_PYTHON names no Python with medusa-trt[scale]"),
]

_SCRIPT = Path(__file__).parents[1] / "support/servers/ray_cluster.py"
_START_S = 120.0


class Cluster:
    """Two replicas behind one address.

    Attributes:
        client: a client of them.
    """

    def __init__(self, process: "subprocess.Popen[str]", client: httpx.Client) -> None:
        self._process, self.client = process, client

    def find_replicas(self) -> list[int]:
        """The process ids of the replicas."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("["):
            pass  # Ray writes there too.
        ids: list[int] = json.loads(line)
        return ids

    def measure(self, name: str) -> dict[str, float]:
        """A measurement of each replica."""
        page = self.client.get("/metrics").text
        rows = re.findall(rf'^vllm:{name}{{.*replica="(\w+)".*}} (\S+)$', page, re.MULTILINE)
        return {replica: float(value) for replica, value in rows}


@pytest.fixture(scope="module")
def cluster(demo_bundle: Path) -> Iterator[Cluster]:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    arguments = {
        "bundle": str(demo_bundle),
        "min_replicas": 2,
        "max_replicas": 2,
        "num_cpus": 0.1,
        "num_threads": 1,
    }
    command = [PYTHON, str(_SCRIPT), str(port), json.dumps(arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=_START_S) as client:
                cluster = Cluster(process, client)
                wait_for(lambda: len(cluster.measure("num_requests_running")) == 2, _START_S)
                yield cluster
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture(scope="module")
def demo_bundle() -> Path:
    path = Path(__file__).parents[2] / "build/smollm2-135m"
    if not path.exists():
        pytest.skip("there is no demo bundle: make demo")
    return path


def read_stream(cluster: Cluster, prompt: str, begun: list[str]) -> list[dict[str, Any]]:
    """Reads a long reply, and notes when it has begun."""
    fields = {"prompt": prompt, "max_tokens": 1000, "ignore_eos": True, "temperature": 0}
    with cluster.client.stream("POST", "/v1/completions", json=fields | {"stream": True}) as reply:
        assert reply.status_code == 200
        lines = []
        for line in filter(None, reply.iter_lines()):
            lines.append(line.removeprefix("data: "))
            if len(lines) == 1:
                begun.append(prompt)
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_conversation_stays_at_the_replica_that_has_read_it(cluster: Cluster) -> None:
    for topic in ("stars", "rivers", "bread", "chess"):
        messages = [{"role": "user", "content": f"Tell me about {topic}, please."}]
        cached = []
        for _ in range(3):
            body = {"messages": messages, "max_tokens": 20, "temperature": 0}
            reply = cluster.client.post("/v1/chat/completions", json=body).json()
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
            content = reply["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": content})
            messages.append({"role": "user", "content": "Go on."})
        assert cached[1] > 30 and cached[2] > cached[1]
    assert all(cluster.measure("request_prompt_tokens_count").values()), "one replica had nothing"


def test_replies_are_those_of_a_session(cluster: Cluster, demo_bundle: Path) -> None:
    body = {"prompt": "The sea", "max_tokens": 30, "temperature": 0}
    reply = cluster.client.post("/v1/completions", json=body).json()
    with MedusaSession(Bundle.open(demo_bundle)) as session:
        expected = session.generate("The sea", GenerationOptions(max_new_tokens=30))
    assert reply["choices"][0]["text"] == expected.text
    wrong = cluster.client.post("/v1/completions", json=body | {"best_of": 2})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "best_of"


def test_a_client_that_leaves_frees_its_row(cluster: Cluster) -> None:
    fields = {"prompt": "Once", "max_tokens": 6000, "ignore_eos": True, "stream": True}
    with cluster.client.stream("POST", "/v1/completions", json=fields) as reply:
        next(reply.iter_lines())
    wait_for(lambda: not any(cluster.measure("num_requests_running").values()))


def test_a_replica_is_killed(cluster: Cluster) -> None:
    """Six streams have begun at both replicas, and six requests are not answered yet."""

    def complete(prompt: str) -> httpx.Response:
        asked.append(prompt)
        fields = {"prompt": prompt, "max_tokens": 500, "ignore_eos": True, "temperature": 0}
        return cluster.client.post("/v1/completions", json=fields)

    begun: list[str] = []
    asked: list[str] = []
    replicas = cluster.find_replicas()
    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(read_stream, cluster, f"Story {n}", begun) for n in range(6)]
        wait_for(lambda: len(begun) == 6, _START_S)
        wholes = [pool.submit(complete, f"Whole {number}") for number in range(6)]
        wait_for(lambda: len(asked) == 6, _START_S)
        os.kill(replicas[0], signal.SIGKILL)
        lasts = [stream.result()[-1] for stream in streams]
        replies = [whole.result() for whole in wholes]
    cut = [last for last in lasts if "error" in last]
    assert all(last["error"]["code"] == "replica_lost" for last in cut)
    ended = [last for last in lasts if "choices" in last]
    assert all(last["choices"][0]["finish_reason"] == "length" for last in ended)
    assert cut and ended and len(cut) + len(ended) == 6
    assert [reply.status_code for reply in replies] == [200] * 6
    assert all(reply.json()["usage"]["completion_tokens"] == 500 for reply in replies)
    wait_for(lambda: len(set(cluster.find_replicas()) - {replicas[0]}) == 2, _START_S)
    wait_for(lambda: len(cluster.measure("num_requests_running")) == 2, _START_S)
