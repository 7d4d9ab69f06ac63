"""Messages of a conversation, and the tools that their writer may call."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from medusa_trt.serving.requests.values import Body


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call that the model made."""

    name: str
    arguments: str


class ToolCall(Body):
    """A tool call in a message of the assistant."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Body):
    """A message; the chat template gets it as it is.

    Clients send messages back as they got them, so fields of replies may be there without a value.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: Annotated[str | None, Field(validate_default=True)] = None
    content: Annotated[str | list[TextPart] | None, Field(validate_default=True)] = None
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @field_validator("content")
    @classmethod
    def _need_content(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        """Only calls of the assistant may stand without text."""
        is_call = info.data.get("role") == "assistant" and info.data.get("tool_calls")
        if content is None and not is_call:
            raise PydanticCustomError("missing", "Field required")
        return content

    @field_validator("tool_call_id")
    @classmethod
    def _need_call(cls, call_id: str | None, info: ValidationInfo) -> str | None:
        """A tool's answer names its call."""
        if call_id is None and info.data.get("role") == "tool":
            raise PydanticCustomError("missing", "Field required")
        return call_id


_FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class FunctionTool(Body):
    """A function that the model may call; without parameters it takes no arguments.

    With `strict` each call has arguments of this schema, also where `tool_choice` is auto.
    """

    name: _FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """The name of a function."""

    name: _FunctionName


class NamedTool(Body):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction
