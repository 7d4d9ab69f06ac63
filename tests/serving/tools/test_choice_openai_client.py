"""Tools through the `openai` client: calls are made, read back, and shown to the model again."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI, pydantic_function_tool
from pydantic import BaseModel
from support.servers.live_server import LiveServer, running_server
from support.servers.tool_templates import HERMES, MISTRAL, with_chat_template

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.runtime.text.prompts import ChatPrompt

HELLO: Any = [{"role": "user", "content": "hello"}]


class Look(BaseModel):
    """Looks something up."""

    is_short: bool
    kind: Literal["a", "b"]


TOOLS: Any = [
    pydantic_function_tool(Look),
    {"type": "function", "function": {"name": "stop", "strict": False}},
]
FORCED: dict[str, Any] = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required"}


@pytest.fixture(scope="module", params=[HERMES, MISTRAL], ids=["text", "special token"])
def live(
    request: pytest.FixtureRequest, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("bundles")
    bundle = with_chat_template(tiny_bundle, request.param, folder)
    session = MedusaSession(bundle, num_threads=1, batch_size=2)
    with session, running_server(session, max_sequences=2) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    values = {"model": "tiny-llama", "messages": HELLO, "tools": TOOLS, "max_tokens": 440}
    return client.chat.completions.create(**values | {"seed": 3} | fields)


def check_arguments(name: str, arguments: str) -> None:
    if name == "Look":
        Look.model_validate_json(arguments)
    else:
        assert (name, json.loads(arguments)) == ("stop", {})


def test_a_required_call_has_valid_arguments(client: OpenAI) -> None:
    for seed in range(3):
        fields = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        (choice,) = ask(client, **fields).choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        for call in choice.message.tool_calls:
            check_arguments(call.function.name, call.function.arguments)


def test_a_streamed_call_is_the_same(client: OpenAI) -> None:
    whole = ask(client, tool_choice="required", n=2)
    calls: dict[tuple[int, int], list[str]] = {}
    reasons: dict[int, str] = {}
    for chunk in ask(client, tool_choice="required", n=2, stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        for call in choice.delta.tool_calls or ():
            if call.id is not None:
                calls[choice.index, call.index] = [call.function.name, ""]
            calls[choice.index, call.index][1] += call.function.arguments
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    expected = {
        (choice.index, number): [call.function.name, call.function.arguments]
        for choice in whole.choices
        for number, call in enumerate(choice.message.tool_calls)
    }
    assert calls == expected
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_a_named_function_is_called_once(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "stop"}}
    (choice,) = ask(client, tool_choice=named).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "stop" and call.function.arguments == "{}"
    (choice,) = ask(client, tool_choice="required", parallel_tool_calls=False).choices
    assert len(choice.message.tool_calls) == 1


def test_the_parsing_client_gets_the_arguments(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "Look"}}
    reply = client.chat.completions.parse(
        model="tiny-llama", messages=HELLO, tools=TOOLS[:1], tool_choice=named, seed=1
    )
    calls = reply.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert isinstance(call.function.parsed_arguments, Look)


def test_calls_and_their_results_are_shown_to_the_model(client: OpenAI, live: LiveServer) -> None:
    message = ask(client, tool_choice="required").choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls
    ]
    again = ask(client, messages=[*HELLO, message, *results], max_tokens=4)
    calls = [call.model_dump() for call in message.tool_calls]
    for call in calls:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    shown = [{"role": "assistant", "tool_calls": calls}, *results]
    prompt = ChatPrompt(messages=[*HELLO, *shown], tools=json.loads(json.dumps(TOOLS)))
    assert again.usage.prompt_tokens == len(live.session.encode(prompt))


def test_text_stays_text_and_none_hides_the_tools(client: OpenAI, live: LiveServer) -> None:
    plain = ask(client, tools=None, max_tokens=20)
    hidden = ask(client, tool_choice="none", max_tokens=20)
    assert hidden.choices[0].message.content == plain.choices[0].message.content
    assert hidden.usage.prompt_tokens == plain.usage.prompt_tokens
    free = ask(client, tools=TOOLS[1:], max_tokens=20)
    assert free.choices[0].message.content and not free.choices[0].message.tool_calls
    assert free.choices[0].finish_reason == "length"
    assert free.usage.prompt_tokens > plain.usage.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
        ({"tools": None, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "tools"),
        ({"functions": []}, "functions"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "no-type"}},
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "123456789",
                                "type": "function",
                                "function": {"name": "stop", "arguments": "{"},
                            }
                        ],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as error:
        ask(client, extra_body=fields)
    assert error.value.param == param, error.value.message
