"""A message of the assistant as it grows: its text and its calls."""

from typing import Any

from medusa_trt.runtime.reply import Generation
from medusa_trt.serving.conversion import describe_finish
from medusa_trt.serving.tools.choice import ToolChoice
from medusa_trt.serving.tools.reading import CallPart


class GrowingMessage:
    """A message of the assistant as it is made."""

    def __init__(self, tools: ToolChoice | None) -> None:
        """Begins a message that may use these tools."""
        self._reader = None if tools is None else tools.start_reader()

    def add(self, text: str, *, is_last: bool) -> dict[str, Any]:
        """Adds text of the reply; returns what is new of the message's content and calls."""
        if self._reader is None:
            return {"content": text}
        parts = self._reader.push(text) + (self._reader.finish() if is_last else [])
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [_describe_call(part) for part in parts if isinstance(part, CallPart)]
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})

    def describe_finish(self, generation: Generation | None) -> str | None:
        """The reason by which the message ended, in OpenAI's words; None while it grows."""
        reason = describe_finish(generation)
        has_calls = self._reader is not None and self._reader.num_calls > 0
        return "tool_calls" if reason == "stop" and has_calls else reason


def _describe_call(part: CallPart) -> dict[str, Any]:
    """Describes a part of a call; the first part has the id and the name."""
    function = {"arguments": part.arguments}
    if not part.id:
        return {"index": part.index, "function": function}
    function = {"name": part.name, **function}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}
