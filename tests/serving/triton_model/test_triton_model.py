"""The model for Triton answers requests as a session does; Triton itself is a stand-in here."""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.servers.live_server import slow_steps, wait_for
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

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "out"
    deploy(tiny_bundle, "triton", output)
    (output / "bundle").symlink_to(tiny_bundle.path)
    return output


def model_config(repository: Path) -> str:
    """The config of the model, as Triton gives it."""
    values = {"bundle": str(repository / "bundle"), "batch_size": "2", "max_queue": "3"}
    return json.dumps(
        {"parameters": {name: {"string_value": value} for name, value in values.items()}}
    )


def make_model(repository: Path) -> Any:
    """Makes an object of the class that the repository's `model.py` gives Triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", triton_python_backend_utils())
        patch.delitem(sys.modules, "medusa_trt.serving.triton_model", raising=False)
        names = runpy.run_path(str(repository / "models/medusa/1/model.py"))
    return names["TritonPythonModel"]()


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[Any]:
    """The repository's model, opened on the bundle beside it."""
    opened = make_model(repository)
    opened.initialize({"model_config": model_config(repository)})
    text = (repository / "models/medusa/config.pbtxt").read_text()
    opened.input_names = set(re.findall(r'input { name: "(\w+)"', text))
    yield opened
    opened.finalize()


def answer(model: Any, cancels_after: int | None = None, **inputs: Any) -> Sender:
    sender = Sender(cancels_after)
    model.execute([Request(sender, model.input_names, **inputs)])
    assert sender.finished.wait(WAIT_S)
    return sender


def text_of(sender: Sender) -> str:
    """The text of all responses."""
    assert all(each.error is None for each in sender.responses)
    return b"".join(each.outputs["text_output"][0] for each in sender.responses).decode()


def parameters(**values: object) -> str:
    return json.dumps({"max_new_tokens": 12, "ignore_eos": True, **values})


def test_a_prompt_is_answered_as_by_a_session(model: Any, tiny_bundle: Bundle) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        options = GenerationOptions(max_new_tokens=12, ignore_eos=True)
        expected = [session.generate(prompt, options).text for prompt in ("hello", MESSAGES)]
    whole = answer(model, text_input="hello", sampling_parameters=parameters())
    assert len(whole.responses) == 1 and text_of(whole) == expected[0]
    outputs = whole.responses[0].outputs
    assert outputs["finish_reason"][0] == b"length"
    assert outputs["num_output_tokens"].tolist() == [12]
    assert outputs["num_input_tokens"].tolist() == [5]
    streamed = answer(model, text_input="hello", stream=True, sampling_parameters=parameters())
    assert len(streamed.responses) > 1 and text_of(streamed) == expected[0]
    ends = ["finish_reason" in each.outputs for each in streamed.responses]
    assert ends == [*([False] * (len(ends) - 1)), True]
    chat = answer(model, messages=json.dumps(MESSAGES), sampling_parameters=parameters())
    assert text_of(chat) == expected[1]


def test_options_reach_the_reply(model: Any) -> None:
    first, again, other = (
        text_of(answer(model, text_input="hello", sampling_parameters=asked))
        for asked in (
            parameters(temperature=0.8, top_p=0.9, seed=3),
            parameters(temperature=0.8, top_p=0.9, seed=3),
            parameters(temperature=0.8, seed=4),
        )
    )
    assert first == again != other
    constrained = answer(model, text_input="a", sampling_parameters='{"regex": "(ab){3}"}')
    assert text_of(constrained) == "ababab"


def test_options_may_be_parameters_of_the_request(model: Any) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 1, "seed": 3}
    whole = text_of(answer(model, text_input="hello", **asked))
    assert whole == text_of(
        answer(model, text_input="hello", sampling_parameters=json.dumps(asked))
    )
    stopped = answer(model, text_input="hello", stop=whole[2], **asked)
    assert len(stopped.responses) == 1
    assert stopped.responses[0].outputs["finish_reason"][0] == b"stop"
    assert text_of(stopped) == whole[: whole.index(whole[2])]


def test_a_client_that_left_ends_the_reply(model: Any) -> None:
    asked = parameters(max_new_tokens=400, ignore_eos=True)
    with slow_steps(model._session, 0.02):
        sender = answer(model, 2, text_input="hello", stream=True, sampling_parameters=asked)
        gone = answer(model, 0, text_input="hello", sampling_parameters=asked)
    assert sender.responses and "finish_reason" not in sender.responses[-1].outputs
    assert not gone.responses, "nobody is there to read a reply that is not streamed"
    wait_for(lambda: model._session.scheduler.is_idle)


@contextmanager
def held_worker(model: Any) -> Iterator[None]:
    """Lets no step begin until the end of the block."""
    is_open = Event()
    model._worker._orders.put(is_open.wait)
    yield
    is_open.set()


def test_requests_run_together(model: Any) -> None:
    senders = [Sender() for _ in range(3)]
    texts = ("hello", "world", "again")
    asked: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "stream": True}
    with held_worker(model):
        model.execute(
            Request(sender, model.input_names, text_input=text, **asked)
            for sender, text in zip(senders, texts, strict=True)
        )
        wait_for(lambda: model._worker.num_live == 3)
    assert all(sender.finished.wait(WAIT_S) for sender in senders)
    # Two replies run at the same time: the second one begins before the first one has ended.
    assert senders[1].first_s < senders[0].last_s
    for sender, text in zip(senders, texts, strict=True):
        alone = answer(model, text_input=text, max_new_tokens=60, ignore_eos=True)
        assert text_of(sender) == text_of(alone)


def test_what_is_beyond_the_queue_is_refused(model: Any) -> None:
    senders = [Sender() for _ in range(7)]
    asked = {"max_new_tokens": 60, "ignore_eos": True}
    with held_worker(model):
        model.execute(
            Request(sender, model.input_names, text_input="hello", **asked) for sender in senders
        )
    assert all(sender.finished.wait(WAIT_S) for sender in senders)
    refused = [sender for sender in senders if sender.responses[0].error is not None]
    for sender in refused:
        error = sender.responses[0].error
        assert error is not None and error.code == "UNAVAILABLE"
        assert "5 replies run or wait" in error
    assert len(refused) == 2


def test_an_engine_that_fails_is_an_error_of_its_requests(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for raised in (EngineError("the device is gone"), RuntimeError("a bug")):

        def fail(*_: object, error: Exception = raised) -> None:
            raise error

        monkeypatch.setattr(model._session.decoder, "step", fail)
        error = answer(model, text_input="hello").responses[0].error
        assert error is not None and error.code == "INTERNAL"
        monkeypatch.undo()
    assert len(text_of(answer(model, text_input="hello", max_new_tokens=5))) > 0


def test_a_model_that_ends_says_so_to_its_clients(repository: Path) -> None:
    opened = make_model(repository)
    opened.initialize({"model_config": model_config(repository)})
    sender = Sender()
    names = {"text_input"}
    asked = {"max_new_tokens": 500, "ignore_eos": True}
    opened.execute([Request(sender, names, text_input="hello", **asked)])
    opened.finalize()
    (response,) = sender.responses
    assert response.error == "the server has ended: use another one"


def test_a_model_whose_tensors_arrive_changed_is_never_ready(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = staticmethod(lambda name, array: Tensor(name, array[:1].repeat(len(array))))
    monkeypatch.setattr(Tensor, "from_dlpack", first)
    with pytest.raises(EngineError, match=r"numpy .* does not work with this Triton: use Triton"):
        make_model(repository).initialize({"model_config": model_config(repository)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either text_input or messages"),
        ({"text_input": "a", "messages": "[]"}, "give either text_input or messages"),
        ({"messages": "[1]"}, "messages is not a list of objects"),
        ({"messages": "{"}, "messages is not JSON"),
        ({"messages": 1}, "messages is 1: give a list of messages as JSON in a text"),
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
        ({"text_input": "a", "stop": 5}, r"stop is \(5,\): it must be a sequence of which each"),
        ({"text_input": "a", "top_p": 2.0}, r"top_p is 2\.0: it must be"),
        ({"text_input": "a", "top_k": "x"}, r"top_k is 'x': it must be a whole number"),
        ({"text_input": "a", "seed": 1, "sampling_parameters": '{"seed": 1}'}, "give it once"),
        ({"text_input": "a", "regex": "a", "grammar": "b"}, "regex and grammar exclude each other"),
        ({"text_input": "a", "regex": 1}, "regex is 1: it must be text"),
        ({"text_input": "a", "regex": "("}, "regex"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    model: Any, inputs: dict[str, Any], message: str
) -> None:
    responses = answer(model, **inputs).responses
    assert len(responses) == 1 and responses[0].error is not None
    assert re.search(message, responses[0].error) and "\n" not in responses[0].error
    assert responses[0].error.code == "INVALID_ARG"
