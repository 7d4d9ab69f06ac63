"""Which tools a reply may use, by the fields of a request."""

from collections.abc import Callable
from typing import Any

import pytest
from support.servers.tool_templates import HERMES, XML

from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.requests.schemas import ChatRequest
from medusa_trt.serving.tools.choice import ToolChoice, choose_tools
from medusa_trt.serving.tools.forms import ToolTemplate

Observe = Callable[[str], ToolTemplate]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "look_up")]
STRICT = [{"type": "function", "function": {"name": "add", "strict": True}}]
NAMED = {"type": "function", "function": {"name": "add"}}


def choose(template: ToolTemplate, **fields: Any) -> ToolChoice | None:
    body = {"messages": [{"role": "user", "content": "a"}]} | fields
    return choose_tools(ChatRequest.model_validate(body), template)


@pytest.mark.parametrize(
    ("fields", "names", "is_restricted"),
    [
        ({"tools": TOOLS}, {"add", "look_up"}, False),
        ({"tools": TOOLS, "tool_choice": "auto"}, {"add", "look_up"}, False),
        ({"tools": TOOLS, "tool_choice": "required"}, {"add", "look_up"}, True),
        ({"tools": TOOLS, "tool_choice": NAMED}, {"add"}, True),
        ({"tools": TOOLS, "parallel_tool_calls": True}, {"add", "look_up"}, False),
        ({"tools": TOOLS, "parallel_tool_calls": False}, {"add", "look_up"}, True),
        ({"tools": STRICT}, {"add"}, True),
    ],
)
def test_the_choice_names_the_functions_and_restricts_the_reply(
    observe: Observe, fields: dict[str, Any], names: set[str], is_restricted: bool
) -> None:
    choice = choose(observe(HERMES), **fields)
    assert choice is not None
    assert set(choice.names) == names and (choice.grammar is not None) == is_restricted
    assert list(choice.tools) == fields["tools"], "the template shows all of them"


def test_no_tools_are_no_choice(observe: Observe) -> None:
    template = observe(HERMES)
    assert choose(template) is None
    assert choose(template, tool_choice="none") is None
    assert choose(template, tools=TOOLS, tool_choice="none") is None


@pytest.mark.parametrize(
    ("template", "fields", "param"),
    [
        (HERMES, {"tool_choice": "auto"}, "tool_choice"),
        (HERMES, {"parallel_tool_calls": False}, "parallel_tool_calls"),
        (HERMES, {"tools": TOOLS[:1] * 2}, "tools"),
        (HERMES, {"tools": TOOLS[1:], "tool_choice": NAMED}, "tool_choice"),
        (XML, {"tools": TOOLS}, "tools"),
    ],
)
def test_contradictions_are_refused_by_name(
    observe: Observe, template: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as raised:
        choose(observe(template), **fields)
    assert raised.value.status == 400 and raised.value.param == param
