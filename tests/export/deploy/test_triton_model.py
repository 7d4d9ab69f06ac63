"""The model repository for Triton: its config is Triton's, and its model.py answers requests."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.stand_ins.fake_triton import (
    WAIT_S,
    Request,
    Sender,
    Tensor,
    triton_python_backend_utils,
)

from medusa_trt.errors import EngineError
from medusa_trt.export.deploy.deployment import deploy
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession

_CLIENT = importlib.util.find_spec("tritonclient")
needs_tritonclient = pytest.mark.skipif(
    _CLIENT is None, reason="tritonclient is not installed: pip install --no-deps tritonclient"
)


def module_from_file(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "out"
    deploy(tiny_bundle, "triton", output)
    (output / "bundle").symlink_to(tiny_bundle.path)
    return output


def model_config(repository: Path) -> str:
    """The config of the model, as Triton gives it."""
    values = {"bundle": str(repository / "bundle"), "batch_size": "2"}
    return json.dumps(
        {"parameters": {name: {"string_value": value} for name, value in values.items()}}
    )


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[Any]:
    """The repository's model, opened on the bundle beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", triton_python_backend_utils())
        module = module_from_file("model", repository / "models/medusa/1/model.py")
    found = module.TritonPythonModel()
    found.initialize({"model_config": model_config(repository)})
    text = (repository / "models/medusa/config.pbtxt").read_text()
    found.input_names = set(re.findall(r'input { name: "(\w+)"', text))
    yield found
    found.finalize()


def answer(model: Any, cancels_after: int | None = None, **inputs: Any) -> Sender:
    sender = Sender(cancels_after)
    model.execute([Request(sender, model.input_names, **inputs)])
    assert sender.finished.wait(WAIT_S)
    return sender


def parameters(**values: object) -> str:
    return json.dumps({"max_new_tokens": 12, "ignore_eos": True, **values})


def test_a_prompt_is_answered_as_by_a_session(model: Any, tiny_bundle: Bundle) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        options = GenerationOptions(max_new_tokens=12, ignore_eos=True)
        expected = [session.generate(prompt, options).text for prompt in ("hello", MESSAGES)]
    whole = answer(model, text_input="hello", sampling_parameters=parameters()).responses
    assert [each.outputs["text_output"][0].decode() for each in whole] == expected[:1]
    assert whole[0].outputs["finish_reason"][0] == b"length"
    assert whole[0].outputs["num_output_tokens"].tolist() == [12]
    assert whole[0].outputs["num_input_tokens"].tolist() == [5]
    pieces = answer(
        model, text_input="hello", stream=True, sampling_parameters=parameters()
    ).responses
    assert len(pieces) > 3
    texts = [piece.outputs["text_output"][0].decode() for piece in pieces]
    assert "".join(texts) == expected[0]
    assert ["finish_reason" in piece.outputs for piece in pieces].count(True) == 1
    chat = answer(model, messages=json.dumps(MESSAGES), sampling_parameters=parameters()).responses
    assert chat[0].outputs["text_output"][0].decode() == expected[1]


MESSAGES = [{"role": "user", "content": "hi"}]


def test_sampling_parameters_reach_the_reply(model: Any) -> None:
    asked = parameters(temperature=0.8, top_p=0.9, seed=3)
    first, again, other = (
        answer(model, text_input="hello", sampling_parameters=each).responses[0].outputs
        for each in (asked, asked, parameters(temperature=0.8, seed=4))
    )
    assert first["text_output"] == again["text_output"] != other["text_output"]


def test_a_client_that_left_ends_the_reply(model: Any) -> None:
    asked = parameters(max_new_tokens=200)
    sender = answer(model, 2, text_input="hello", stream=True, sampling_parameters=asked)
    assert len(sender.responses) == 2 and "finish_reason" not in sender.responses[-1].outputs
    again = answer(model, text_input="hello", max_new_tokens=3, ignore_eos=True).responses
    assert again[0].outputs["num_output_tokens"].tolist() == [3]


def test_options_are_inputs_of_their_types(model: Any) -> None:
    asked: dict[str, Any] = {
        "max_new_tokens": 12,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": 3,
    }
    typed = answer(model, text_input="hello", **asked).responses[0].outputs
    as_json = answer(model, text_input="hello", sampling_parameters=json.dumps(asked)).responses[0]
    assert typed["text_output"] == as_json.outputs["text_output"]
    text = typed["text_output"][0].decode()
    assert len(text) > 2
    stopped = answer(model, text_input="hello", stop=["never", text[2]], **asked).responses[0]
    assert stopped.outputs["finish_reason"][0] == b"stop"
    assert stopped.outputs["text_output"][0].decode() == text[: text.index(text[2])]


def test_requests_run_together(model: Any) -> None:
    senders = [Sender(), Sender(), Sender()]
    names = model.input_names
    texts = ("hello", "world", "again")
    asked: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "stream": True}
    model.execute(
        Request(sender, names, text_input=text, **asked)
        for sender, text in zip(senders, texts, strict=True)
    )
    assert all(sender.finished.wait(WAIT_S) for sender in senders)
    for sender, text in zip(senders, texts, strict=True):
        pieces = [each.outputs["text_output"][0].decode() for each in sender.responses]
        alone = answer(model, text_input=text, max_new_tokens=60, ignore_eos=True).responses[0]
        assert "".join(pieces) == alone.outputs["text_output"][0].decode()


def test_a_model_whose_tensors_arrive_changed_is_never_ready(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = triton_python_backend_utils()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    module = module_from_file("other_model", repository / "models/medusa/1/model.py")
    first = staticmethod(lambda name, array: Tensor(name, array[:1].repeat(len(array))))
    monkeypatch.setattr(Tensor, "from_dlpack", first)
    with pytest.raises(EngineError, match=r"numpy .* does not work with this Triton: pip install"):
        module.TritonPythonModel().initialize({"model_config": model_config(repository)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either text_input or messages"),
        ({"text_input": "a", "messages": "[]"}, "give either text_input or messages"),
        ({"messages": "[1]"}, "messages is not a list of objects"),
        ({"messages": "{"}, "messages is not JSON"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "is not a JSON object"),
        ({"text_input": "a", "sampling_parameters": '{"best_of": 2}'}, "unknown in .*: best_of;"),
        ({"text_input": "a", "sampling_parameters": '{"top_p": 2}'}, "top_p is 2"),
        (
            {"text_input": "a", "sampling_parameters": '{"top_p": "x"}'},
            "top_p is 'x': it must be a number",
        ),
        ({"text_input": "x" * 600}, "the prompt has 600 tokens"),
        ({"text_input": "a", "best_of": 3}, "unknown in the request: best_of; known are text_inp"),
        ({"text_input": "a", "sampling_parameters": '{"stop": [1, 2]}'}, r"stop is \(1, 2\): it"),
        ({"text_input": "a", "top_p": 2.0}, r"top_p is 2\.0: it must be"),
        ({"text_input": "a", "seed": 1, "sampling_parameters": '{"seed": 1}'}, "give it once"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    model: Any, inputs: dict[str, Any], message: str
) -> None:
    responses = answer(model, **inputs).responses
    assert len(responses) == 1 and responses[0].error is not None
    assert re.search(message, responses[0].error) and "\n" not in responses[0].error


@needs_tritonclient
@pytest.mark.parametrize("fixture", ["tiny_bundle", "cuda_bundle", "trt_bundle"])
def test_the_config_is_tritons(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from google.protobuf import text_format

    assert _CLIENT is not None and _CLIENT.origin is not None
    # By its path: the package itself wants grpc.
    forms = module_from_file(
        "model_config_pb2", Path(_CLIENT.origin).parent / "grpc/model_config_pb2.py"
    )
    deploy(request.getfixturevalue(fixture), "triton", tmp_path / "out")
    text = (tmp_path / "out/models/medusa/config.pbtxt").read_text()
    config = text_format.Parse(text, forms.ModelConfig())
    assert config.name == "medusa" and config.backend == "python" and not config.max_batch_size
    assert config.model_transaction_policy.decoupled
    assert config.parameters["bundle"].string_value == "/app/bundle"
    assert all(each.optional for each in config.input)
    kind = forms.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
    assert kind == ("KIND_CPU" if fixture == "tiny_bundle" else "KIND_GPU")


def test_the_scripts_fit_what_is_written(repository: Path) -> None:
    text = (repository / "Containerfile").read_text()
    copied = [name for line in re.findall(r"COPY (.*)", text) for name in line.split()[:-1]]
    assert {name for name in copied if not (repository / name).exists()} == set()
    subprocess.run(["bash", "-n", repository / "start.sh"], check=True)
    assert "medusa-trt build" not in (repository / "start.sh").read_text()


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_model(status: int, repository: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    command = ["bash", str(repository / "health_check.sh"), str(server.server_port)]
    found = subprocess.run(command, capture_output=True)
    thread.join()
    server.server_close()
    assert (found.returncode == 0) == (status == 200)
    body = {"text_input": "hello", "sampling_parameters": '{"max_new_tokens": 1}'}
    assert asked == [("/v2/models/medusa/generate", body)]
