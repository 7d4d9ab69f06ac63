"""How a chat template shows tools, and in which form its model writes a call.

The form is observed: examples of calls are rendered, and what stands around their names and
arguments is what the model has learned to write.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from medusa_trt.errors import PromptError
from medusa_trt.runtime.text.codec import TextCodec
from medusa_trt.runtime.text.prompts import ChatPrompt

_NAMES = ("probe_alpha", "probe_beta")
_ARGUMENTS: tuple[dict[str, Any], ...] = ({"key_a": "value_a"}, {"key_b": "value_b"})
_IDS = ("probe0001", "probe0002")
"""Mistral's templates take only ids of nine letters and digits."""

_TEXT = "§probe§"
_USER = {"role": "user", "content": "probe"}
_OPEN_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")

_PYTHON_TAG = "<|python_tag|>"
"""What Llama 3 may write before a call, though its templates do not show it there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """How a model writes calls in its reply.

    A call is a JSON object with two keys, or the function's name, `middle` and its arguments.

    Attributes:
        begin: text before the first call.
        between: text between two calls; None if a reply has only one call.
        end: text after the last call.
        name_key: the object's key of the name; empty if a call is no object.
        arguments_key: the object's key of the arguments; empty if a call is no object.
        middle: text between the name and the arguments, if a call is no object.
        prefix: text that may stand before `begin`.
        takes_text: whether the template reads the arguments of earlier calls as JSON text.
    """

    begin: str
    between: str | None
    end: str
    name_key: str = ""
    arguments_key: str = ""
    middle: str = ""
    prefix: str = ""
    takes_text: bool = False

    @property
    def is_object(self) -> bool:
        """Whether a call is a JSON object."""
        return bool(self.name_key)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts around names and arguments."""
        return self.prefix, self.begin, self.middle, self.between or "", self.end


class ToolTemplate:
    """What the chat template of a model does with tools.

    Attributes:
        text: renders with the template.
    """

    def __init__(self, text: TextCodec) -> None:
        self.text = text

    @cached_property
    def form(self) -> ToolForm:
        """The form of calls.

        Raises:
            PromptError: the template does not show tools, or writes calls in no form known here.
        """
        rendered = self._render()
        if not all(name in rendered for name in _NAMES):
            raise PromptError("the model's chat template does not show them: leave them out")
        for takes_text in (False, True):
            form = self._observe(takes_text)
            if form is not None:
                return form
        raise PromptError(
            "the model's chat template does not write a call as a name and JSON, and no other "
            "form is read here: leave them out"
        )

    @cached_property
    def shown_ids(self) -> tuple[int, ...]:
        """The special tokens in the texts of the form, which have to be seen in a reply."""
        names = self.text.special_tokens
        joined = "\0".join(self.form.texts)
        return tuple(token_id for token_id, name in names.items() if name in joined)

    def _render(self, reply: Mapping[str, Any] | None = None) -> str:
        """Renders a conversation with a reply of the model; empty if the template refuses it."""
        messages = [_USER] if reply is None else [_USER, {"role": "assistant", **reply}]
        prompt = ChatPrompt(messages=messages, tools=_make_tools())
        try:
            return self.text.render_chat(prompt, is_whole=reply is not None)
        except PromptError:
            return ""

    def _observe(self, takes_text: bool) -> ToolForm | None:
        """Observes the form of calls whose arguments are given as a dict, or as JSON text."""
        one, two = (
            self._render({"content": "", "tool_calls": _make_calls(count, takes_text)})
            for count in (1, 2)
        )
        head, _, tail = self._render({"content": _TEXT}).partition(_TEXT)
        start = _find_difference(one, head)
        first = _find_call(one, 0, start)
        if first is None:
            return None
        form = ToolForm(
            begin=one[start : first.start].lstrip(),
            between=_find_between(two, first, start),
            end=self._cut_turn(one[first.end :], tail),
            name_key=first.name_key,
            arguments_key=first.arguments_key,
            middle=first.middle,
            prefix=_PYTHON_TAG if _PYTHON_TAG in self.text.special_tokens.values() else "",
            takes_text=takes_text,
        )
        needs_begin = not form.is_object and not (form.begin and form.middle.strip())
        has_examples = any(part in text for text in form.texts for part in (*_NAMES, *_IDS))
        return None if needs_begin or has_examples else form

    def _cut_turn(self, rest: str, tail: str) -> str:
        """Cuts what ends each reply from the text after a call."""
        ends = (self.text.special_tokens.get(token, "") for token in self.text.eos_token_ids)
        cuts = [rest.find(end) for end in ends if end]
        if tail and rest.endswith(tail):
            cuts.append(len(rest) - len(tail))
        return rest[: min((cut for cut in cuts if cut != -1), default=len(rest))]


def _find_difference(one: str, other: str) -> int:
    """Finds where two texts begin to differ, or the beginning of the tag that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    end = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    shared = one[:end]
    tag = _OPEN_TAG.search(shared)
    return len(shared) if tag is None else tag.start()


class _Call(NamedTuple):
    """Where a call stands in a text, and what it is made of."""

    start: int
    end: int
    name_key: str = ""
    arguments_key: str = ""
    middle: str = ""


def _find_between(two: str, first: _Call, start: int) -> str | None:
    """Finds the text between two calls; None if the template shows only one."""
    call = _find_call(two, 0, start)
    other = None if call is None else _find_call(two, 1, call.end)
    if call is None or other is None or other[2:] != first[2:]:
        return None
    return two[call.end : other.start]


def _find_call(text: str, index: int, start: int) -> _Call | None:
    """Finds an example of a call behind a place."""
    name, arguments = _NAMES[index], _ARGUMENTS[index]
    place = text.find(name, start)
    if place == -1:
        return None
    begin = text.rfind("{", start, place)
    while begin != -1:
        value, end = _decode(text, begin)
        if isinstance(value, dict):
            keys = {str(item): key for key, item in value.items()}
            if name in keys and str(arguments) in keys:
                return _Call(begin, end, keys[name], keys[str(arguments)])
        begin = text.rfind("{", start, begin)
    begin = text.find("{", place)
    value, end = _decode(text, begin)
    if begin == -1 or value != arguments:
        return None
    return _Call(place, end, middle=text[place + len(name) : begin])


def _decode(text: str, begin: int) -> tuple[object, int]:
    """Reads the JSON value at a place, and finds its end; None if there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, IndexError):
        return None, begin


def _make_tools() -> list[dict[str, Any]]:
    functions = [
        {
            "name": name,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": "A text."}},
                "required": [key],
            },
        }
        for name, (key,) in zip(_NAMES, _ARGUMENTS, strict=True)
    ]
    return [{"type": "function", "function": function} for function in functions]


def _make_calls(count: int, takes_text: bool) -> list[dict[str, Any]]:
    calls = []
    for call_id, name, values in list(zip(_IDS, _NAMES, _ARGUMENTS, strict=True))[:count]:
        arguments = json.dumps(values) if takes_text else values
        function = {"name": name, "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
    return calls
