"""What the tools of a request mean for its prompt, its grammar and the reading of its reply."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from medusa_trt.errors import PromptError
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.serving.errors import ApiError
from medusa_trt.serving.requests.messages import FunctionTool, NamedTool
from medusa_trt.serving.requests.schemas import ChatRequest
from medusa_trt.serving.tools.forms import ToolTemplate
from medusa_trt.serving.tools.grammar import make_call_grammar
from medusa_trt.serving.tools.reading import ToolReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """The tools that a reply may use.

    Attributes:
        template: what the chat template does with tools; it does something.
        tools: what the chat template shows.
        names: the functions that may be called.
        grammar: of the reply; None if nothing restricts it.
    """

    template: ToolTemplate
    tools: tuple[Mapping[str, Any], ...]
    names: Collection[str]
    grammar: Grammar | None

    def start_reader(self) -> ToolReader:
        """Starts to read a reply."""
        return ToolReader(self.template.form, self.names)


def choose_tools(body: ChatRequest, template: ToolTemplate) -> ToolChoice | None:
    """Finds out which tools a reply may use; None if it may use none.

    With the choice "none" the template does not show the tools, so that nothing makes the model
    want to call one.

    Raises:
        ApiError: the fields contradict each other, or the model takes no tools.
    """
    if body.tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, name) not in (None, "none"):
                raise _refuse(name, "it needs tools")
        return None
    functions = {tool.function.name: tool.function for tool in body.tools}
    if len(functions) < len(body.tools):
        raise _refuse("tools", "two functions have the same name: give each its own")
    choice = body.tool_choice
    if isinstance(choice, NamedTool) and choice.function.name not in functions:
        raise _refuse("tool_choice", f"tools has no function {choice.function.name!r}")
    try:
        _ = template.form
    except PromptError as error:
        raise _refuse("tools", str(error), code="unsupported_parameter") from error
    if choice == "none":
        return None
    if isinstance(choice, NamedTool):
        functions = {choice.function.name: functions[choice.function.name]}
    return ToolChoice(
        template=template,
        tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools),
        names=functions.keys(),
        grammar=_make_grammar(body, template, functions),
    )


def _make_grammar(
    body: ChatRequest, template: ToolTemplate, functions: Mapping[str, FunctionTool]
) -> Grammar | None:
    is_forced = body.tool_choice not in (None, "auto")
    is_single = body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedTool)
    is_strict = any(function.strict for function in functions.values())
    if not (is_forced or is_single or is_strict):
        return None
    schemas = {name: function.parameters for name, function in functions.items()}
    return make_call_grammar(
        template.form,
        schemas,
        template.text.special_tokens,
        needs_call=is_forced,
        is_single=is_single,
    )


def _refuse(param: str, reason: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {reason}", param=param, code=code)
