"""Messages and tools as clients may send them."""

from typing import Any

import pytest
from pydantic import ValidationError
from support.servers.live_server import LiveServer

from medusa_trt.serving.requests.messages import ChatMessage, FunctionTool

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def test_a_message_may_come_back_as_openai_sends_it(live: LiveServer) -> None:
    reply: dict[str, Any] = {"role": "assistant", "content": "hi", "refusal": None}
    reply["annotations"] = []
    messages = [*HELLO, reply, *HELLO]
    plain = [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]
    fields = {"max_tokens": 4, "temperature": 0}
    answers = [live.chat(messages=each, **fields) for each in (messages, plain)]
    assert answers[0].status_code == 200, answers[0].text
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ],
)
def test_a_message_is_kept_as_it_is(message: dict[str, Any]) -> None:
    kept = ChatMessage.model_validate(message).model_dump(exclude_none=True)
    assert kept == {name: value for name, value in message.items() if value is not None}


@pytest.mark.parametrize(
    ("message", "place", "kind"),
    [
        ({"role": "user"}, "content", "missing"),
        ({"role": "user", "content": None, "tool_calls": [CALL]}, "content", "missing"),
        ({"role": "assistant", "content": None}, "content", "missing"),
        ({"role": "assistant", "tool_calls": []}, "tool_calls", "too_short"),
        ({"role": "tool", "content": "3"}, "tool_call_id", "missing"),
        ({"role": "root", "content": "a"}, "role", "literal_error"),
        ({"role": "user", "content": "a", "refusal": "no"}, "refusal", "none_required"),
        ({"role": "user", "content": "a", "annotations": [1]}, "annotations", "too_long"),
    ],
)
def test_a_message_that_cannot_be_is_refused_at_its_field(
    message: dict[str, Any], place: str, kind: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        ChatMessage.model_validate(message)
    assert (place, kind) in {(error["loc"][0], error["type"]) for error in raised.value.errors()}


def test_names_of_functions_are_those_of_openais_api() -> None:
    for name in ("add", "a-B_9", "x" * 64):
        assert FunctionTool.model_validate({"name": name}).name == name
    for name in ("", "a b", "x" * 65, "ä"):
        with pytest.raises(ValidationError):
            FunctionTool.model_validate({"name": name})
