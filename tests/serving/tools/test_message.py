"""Messages with calls, whole and as a stream of parts."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.servers.tool_templates import HERMES

from medusa_trt.runtime.reply import FinishReason, Generation, GenerationStats
from medusa_trt.serving.requests.schemas import ChatRequest
from medusa_trt.serving.tools.choice import ToolChoice, choose_tools
from medusa_trt.serving.tools.forms import ToolTemplate
from medusa_trt.serving.tools.message import GrowingMessage

CALLS = [("look_up", {"city": "Bern"}), ("add", {"x": [1, 2]})]
TEXT = "Well.\n<tool_call>\n" + "\n</tool_call>\n<tool_call>\n".join(
    json.dumps({"name": name, "arguments": arguments}) for name, arguments in CALLS
)
STATS = GenerationStats(
    prompt_tokens=1,
    cached_tokens=0,
    new_tokens=1,
    accept_lengths=(),
    prefill_s=0.0,
    decode_s=0.0,
    engine_s=0.0,
)


@pytest.fixture
def tools(observe: Callable[[str], ToolTemplate]) -> ToolChoice:
    functions = [{"type": "function", "function": {"name": name}} for name, _ in CALLS]
    body = {"messages": [{"role": "user", "content": "a"}], "tools": functions}
    choice = choose_tools(ChatRequest.model_validate(body), observe(HERMES))
    assert choice is not None
    return choice


def finished(reason: FinishReason) -> Generation:
    return Generation([], "", reason, STATS)


def join(parts: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Joins the parts of a stream as OpenAI's clients do."""
    content, calls = "", {}  # type: ignore[var-annotated]
    for part in parts:
        content += part.get("content", "")
        for call in part.get("tool_calls", ()):
            whole = calls.setdefault(call["index"], {"arguments": ""})
            whole |= {name: call[name] for name in ("id", "type") if name in call}
            whole |= {"name": call["function"]["name"]} if "name" in call["function"] else {}
            whole["arguments"] += call["function"]["arguments"]
    return content, [calls[index] for index in sorted(calls)]


@pytest.mark.parametrize("size", [1, 7, len(TEXT)])
def test_parts_join_to_the_text_and_the_calls(tools: ToolChoice, size: int) -> None:
    message = GrowingMessage(tools)
    cuts = range(0, len(TEXT), size)
    parts = [message.add(TEXT[i : i + size], is_last=i == cuts[-1]) for i in cuts]
    content, calls = join(parts)
    assert content == "Well."
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == CALLS
    assert {call["type"] for call in calls} == {"function"}
    assert len({call["id"] for call in calls}) == 2
    assert message.describe_finish(finished("stop")) == "tool_calls"
    assert message.describe_finish(finished("length")) == "length"
    assert message.describe_finish(None) is None


def test_a_message_without_calls_ends_as_any_other(tools: ToolChoice) -> None:
    message = GrowingMessage(tools)
    assert message.add("Well. <tool", is_last=False) == {"content": "Well."}
    assert message.add("_", is_last=True) == {"content": " <tool_"}
    assert message.describe_finish(finished("stop")) == "stop"


def test_without_tools_a_call_is_text() -> None:
    message = GrowingMessage(None)
    assert message.add(TEXT, is_last=True) == {"content": TEXT}
    assert message.describe_finish(finished("stop")) == "stop"
