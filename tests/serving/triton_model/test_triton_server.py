"""The model inside of Triton itself, over HTTP and gRPC."""

import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.servers.triton_server import PYTHON, TritonServer, running_triton

from medusa_trt.export.deploy.deployment import deploy
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TRITON_PYTHON names no Python with nvidia-pytriton"),
]

_PATH = "/v2/models/medusa/generate"
_ENDLESS = {"ignore_eos": True, "max_new_tokens": 450}


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    deploy(tiny_bundle, "triton", folder / "out")
    config = folder / "out/models/medusa/config.pbtxt"
    config.write_text(config.read_text().replace("/app/bundle", str(tiny_bundle.path)))
    with running_triton(folder / "out/models", folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def offline(tiny_bundle: Bundle) -> Iterator[MedusaSession]:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        yield session


def read_stream(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    with client.stream("POST", f"{_PATH}_stream", json={"stream": True} | fields) as reply:
        assert reply.status_code == 200, reply.read()
        return [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]


def test_replies_are_those_of_a_session(client: httpx.Client, offline: MedusaSession) -> None:
    options = GenerationOptions(max_new_tokens=24)
    whole = client.post(_PATH, json={"text_input": "hällo", "max_new_tokens": 24}).json()
    expected = offline.generate("hällo", options)
    assert whole["text_output"] == expected.text
    assert whole["num_output_tokens"] == expected.stats.new_tokens
    messages = [{"role": "user", "content": "hello"}]
    parts = read_stream(client, messages=json.dumps(messages), max_new_tokens=24)
    assert (
        "".join(part["text_output"] for part in parts) == offline.generate(messages, options).text
    )
    assert parts[-1]["finish_reason"]


def test_four_requests_share_the_steps(client: httpx.Client, offline: MedusaSession) -> None:
    prompts = ["one", "another", "a third", "the last"]
    with ThreadPoolExecutor(4) as pool:
        replies = list(
            pool.map(lambda text: read_stream(client, text_input=text, **_ENDLESS), prompts)
        )
    for prompt, parts in zip(prompts, replies, strict=True):
        options = GenerationOptions(max_new_tokens=450, ignore_eos=True)
        text = "".join(part["text_output"] for part in parts)
        assert text == offline.generate(prompt, options).text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": "x"}, "top_k is 'x': it must be a whole number"),
        ({"best_of": 2}, "unknown in the request: best_of"),
        ({"stop": [1, 2]}, "stop"),
        ({"sampling_parameters": '{"stop": [1, 2]}'}, "stop is (1, 2)"),
        ({"messages": "[]"}, "give either text_input or messages"),
        ({"temperature": -1}, "temperature is -1: it must be between 0 and 100000"),
    ],
)
def test_mistakes_are_errors_of_their_request(
    client: httpx.Client, fields: dict[str, Any], message: str
) -> None:
    for path in (_PATH, f"{_PATH}_stream"):
        reply = client.post(path, json={"text_input": "hello"} | fields)
        assert reply.status_code == 400 and message in reply.text


def test_clients_that_leave_do_no_harm(client: httpx.Client) -> None:
    for _ in range(8):
        fields = {"text_input": "hello", "stream": True} | _ENDLESS
        with client.stream("POST", f"{_PATH}_stream", json=fields) as reply:
            next(reply.iter_lines())
    assert client.post(_PATH, json={"text_input": "a", "max_new_tokens": 2}).status_code == 200


def test_grpc_streams_and_refuses(server: TritonServer, offline: MedusaSession) -> None:
    pytest.importorskip("grpc")
    import numpy as np
    from tritonclient import grpc

    client = grpc.InferenceServerClient(server.grpc)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))

    def ask(request_id: str, text: str, **parameters: Any) -> None:
        text_input = grpc.InferInput("text_input", [1], "BYTES")
        text_input.set_data_from_numpy(np.array([text.encode()], object))
        stream = grpc.InferInput("stream", [1], "BOOL")
        stream.set_data_from_numpy(np.array([True]))
        client.async_stream_infer(
            "medusa", [text_input, stream], request_id=request_id, parameters=parameters
        )

    texts = {"0": "", "1": ""}
    for number, prompt in zip(texts, ("one", "another"), strict=True):
        ask(number, prompt, max_new_tokens=20, ignore_eos=True, temperature=0.0)
    ends: set[str] = set()
    while ends != texts.keys():
        result, error = answers.get(timeout=60)
        assert error is None
        texts[result.get_response().id] += result.as_numpy("text_output")[0].decode()
        if result.as_numpy("finish_reason") is not None:
            ends.add(result.get_response().id)
    options = GenerationOptions(max_new_tokens=20, ignore_eos=True)
    assert texts["0"] == offline.generate("one", options).text
    assert texts["1"] == offline.generate("another", options).text
    ask("2", "a", top_k="x")
    _, error = answers.get(timeout=60)
    assert "top_k is 'x'" in str(error)
    client.stop_stream(cancel_requests=True)
