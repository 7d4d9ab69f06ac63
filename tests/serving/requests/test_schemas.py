"""Fields of requests, beside those that OpenAI's own client knows."""

from typing import Any

import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chat
from pydantic import ValidationError
from support.servers.live_server import LiveServer

from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.requests.schemas import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"prompt": "hello"}
BOTH = [(ChatRequest, CHAT), (CompletionRequest, TEXT)]


def test_every_field_of_openais_api_is_known() -> None:
    for kind, params in (
        (ChatRequest, of_chat.CompletionCreateParamsBase),
        (CompletionRequest, of_completions.CompletionCreateParamsBase),
    ):
        assert set(params.__annotations__) | {"stream"} <= set(kind.model_fields)


@pytest.mark.parametrize(("kind", "needed"), BOTH)
def test_null_is_the_same_as_no_value(
    kind: type[ChatRequest] | type[CompletionRequest], needed: dict[str, Any]
) -> None:
    expected = kind.model_validate(needed)
    for name in kind.model_fields.keys() - needed:
        assert kind.model_validate(needed | {name: None}) == expected, name
    for name in needed:
        with pytest.raises(ValidationError):
            kind.model_validate({name: None})


@pytest.mark.parametrize(("kind", "needed"), BOTH)
def test_the_schema_says_that_null_is_allowed(
    kind: type[ChatRequest] | type[CompletionRequest], needed: dict[str, Any]
) -> None:
    fields = kind.model_json_schema(by_alias=True)["properties"]
    for name in kind.model_fields.keys() - needed:
        assert {"type": "null"} in fields[name].get("anyOf", [fields[name]]) or (
            fields[name]["type"] == "null"
        ), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", False),
        ("service_tier", "auto"),
        ("service_tier", "default"),
        ("modalities", ["text"]),
        ("safety_identifier", "somebody"),
        ("prompt_cache_key", "a key"),
        ("prompt_cache_retention", "in_memory"),
        ("stream_options", None),
    ],
)
def test_values_that_ask_for_what_is_done_anyway_change_nothing(
    live: LiveServer, name: str, value: object
) -> None:
    fields = {"max_tokens": 4, "temperature": 0}
    reply = live.chat(**fields, **{name: value})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"] == live.chat(**fields).json()["choices"]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("metadata", {"a": "b"}, "leave it out"),
        ("audio", {"voice": "alloy", "format": "mp3"}, "leave it out"),
        ("prediction", {"type": "content", "content": "a"}, "leave it out"),
        ("verbosity", "low", "leave it out"),
        ("web_search_options", {}, "leave it out"),
        ("moderation", {"model": "a"}, "leave it out"),
        ("prompt_cache_options", {"mode": "implicit"}, "leave it out"),
        ("reasoning_effort", "low", "chat_template_kwargs"),
        ("functions", [{"name": "f"}], "use tools"),
        ("function_call", "auto", "use tool_choice"),
    ],
)
def test_what_this_server_does_not_have_is_refused_with_advice(
    live: LiveServer, name: str, value: object, advice: str
) -> None:
    reply = live.chat(**{name: value})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == name
    assert error["code"] == "unsupported_parameter" and advice in error["message"]


@pytest.mark.parametrize(
    ("name", "value"), [("store", True), ("service_tier", "flex"), ("modalities", ["audio"])]
)
def test_values_that_ask_for_something_else_are_refused(
    live: LiveServer, name: str, value: object
) -> None:
    error = live.chat(**{name: value}).json()["error"]
    assert error["param"].split(".")[0] == name and error["code"] == "invalid_value"


def test_seeds_below_zero_are_those_of_64_bits(live: LiveServer, offline: MedusaSession) -> None:
    sampling = SamplingOptions(temperature=1.0, seed=2**64 - 1)
    expected = offline.generate("hello", GenerationOptions(max_new_tokens=16, sampling=sampling))
    assert live.complete(seed=-1).json()["choices"][0]["text"] == expected.text


def test_stop_token_ids_end_a_reply_of_both_kinds(live: LiveServer, offline: MedusaSession) -> None:
    fields = {"temperature": 0, "max_tokens": 12}
    messages = [{"role": "user", "content": "hello"}]
    for prompt, ask in ("hello", live.complete), (messages, live.chat):
        whole = offline.generate(prompt, GenerationOptions(max_new_tokens=12))
        stop_ids = (whole.token_ids[6], 0)
        options = GenerationOptions(max_new_tokens=12, stop_ids=stop_ids)
        expected = offline.generate(prompt, options)
        assert 0 < len(expected.text) < len(whole.text)
        (choice,) = ask(**fields, stop_token_ids=stop_ids).json()["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice.get("text", choice.get("message", {}).get("content")) == expected.text
