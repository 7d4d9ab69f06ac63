"""Reads the calls in a growing reply."""

import json
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from medusa_trt.serving.tools.forms import ToolForm
from medusa_trt.serving.tools.json_scan import ObjectScan

_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Mistral's templates take only ids of nine letters and digits."""


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call.

    Attributes:
        index: number of the call in its reply.
        id: in the first part the call's id, else empty.
        name: in the first part the function's name, else empty.
        arguments: more of the arguments, as JSON text.
    """

    index: int
    id: str
    name: str
    arguments: str


class ToolReader:
    """Separates the calls in a reply from its text.

    What does not become a call of an offered function stays text.
    """

    def __init__(self, form: ToolForm, names: Collection[str]) -> None:
        """Begins a reply.

        Args:
            form: how the model writes calls.
            names: the functions that it may call.
        """
        self.num_calls = 0
        self._form, self._names = form, names
        self._state: Literal["text", "call", "after"] = "text"
        self._begin = form.begin.strip()
        self._held = ""
        self._is_start = True
        self._call = _GrowingCall(form, names)

    def push(self, text: str) -> list[str | CallPart]:
        """Reads more of the reply; returns texts and parts of calls, in their order."""
        self._held += text
        parts: list[str | CallPart] = []
        goes_on = True
        while goes_on:
            match self._state:
                case "text":
                    goes_on = self._read_text(parts)
                case "call":
                    goes_on = self._read_call(parts)
                case "after":
                    goes_on = self._read_after()
        return parts

    def finish(self) -> list[str | CallPart]:
        """Returns what is left at the end of the reply."""
        if self._state == "call" and not self._call.is_named:
            return [self._call.raw + self._held]
        is_left = self._state == "text" and self._held and not self._is_blank()
        return [self._held] if is_left else []

    def _is_blank(self) -> bool:
        """Whether what waits is whitespace behind a call."""
        return self.num_calls > 0 and not self._held.strip()

    def _read_text(self, parts: list[str | CallPart]) -> bool:
        """Looks for the beginning of a call; returns whether there is more to read."""
        if not self._begin:
            return self._read_start(parts)
        before, found, after = self._held.partition(self._begin)
        if found:
            if before.strip():
                parts.append(before.rstrip())
            self._begin_call(before[len(before.rstrip()) :] + found, after)
            return True
        # What may begin a call waits, and so does whitespace, which is no text before a call.
        end = len(self._held) - _count_overlap(self._held, self._begin)
        end = len(self._held[:end].rstrip())
        if end:
            parts.append(self._held[:end])
        self._held = self._held[end:]
        return False

    def _read_start(self, parts: list[str | CallPart]) -> bool:
        """Looks for a call without a mark, which is the whole reply."""
        text = self._held.lstrip()
        if self._is_start and (not text or self._form.prefix.startswith(text)):
            return False
        rest = text.removeprefix(self._form.prefix).lstrip()
        if self._is_start and not rest:
            return False
        if self._is_start and rest.startswith("{"):
            self._begin_call(self._held[: -len(rest)], rest)
            return True
        self._is_start = False
        if self._held and not self._is_blank():
            parts.append(self._held)
            self._held = ""
        return False

    def _begin_call(self, mark: str, rest: str) -> None:
        self._is_start, self._state, self._held = False, "call", rest
        self._call = _GrowingCall(self._form, self._names, mark)

    def _read_call(self, parts: list[str | CallPart]) -> bool:
        call, text = self._call, self._held
        if not text.strip():
            return False
        self._held = ""
        was_named = call.is_named
        try:
            self._held = call.push(text)
        except ValueError:
            if not call.is_named:
                parts.append(call.raw + text)
            self._state = "text"
            return False
        arguments = call.take_arguments()
        if call.is_named and (arguments or not was_named):
            call_id, name = ("", "") if was_named else (_make_id(), call.name)
            parts.append(CallPart(self.num_calls, call_id, name, arguments))
        if call.is_done:
            self.num_calls += 1
            self._state = "after"
        return call.is_done

    def _read_after(self) -> bool:
        """Reads what stands behind a call."""
        text = self._held.lstrip()
        end, between = self._form.end.strip(), (self._form.between or "").strip()
        if end and text.startswith(end):
            self._state, self._held = "text", text[len(end) :]
        elif between and between != self._begin and text.startswith(between):
            self._begin_call("", text[len(between) :])
        elif any(mark.startswith(text) for mark in (end, between) if mark):
            return False
        else:
            self._state = "text"
        return True


class _GrowingCall:
    """A call as far as it was read.

    Attributes:
        raw: the text before it, and all of it that was read.
        name: the function; empty before it is known.
        is_done: whether the call has ended.
    """

    def __init__(self, form: ToolForm, names: Collection[str], mark: str = "") -> None:
        self.raw, self.name, self.is_done = mark, "", False
        self._form, self._names = form, names
        self._scan = ObjectScan()
        self._num_taken = 0
        self._held = ""

    @property
    def is_named(self) -> bool:
        """Whether it is known which function is called."""
        return bool(self.name)

    def push(self, text: str) -> str:
        """Reads more; returns what stands behind the call.

        Raises:
            ValueError: this is no call of an offered function.
        """
        before = self.raw
        self._held += text
        if not self._form.is_object and not self.name:
            name, found, rest = self._held.partition(self._form.middle.strip())
            if not found:
                self._check_beginning(name)
                self.raw = before + text
                return ""
            self._set_name(name.strip())
            self._held = rest
        ready = self._held if self._scan.text else self._held.lstrip()
        self._held = ""
        rest = self._scan.push(ready) if ready else ""
        if self._form.is_object and not self.name:
            self._find_name()
        self.raw = before + text[: len(text) - len(rest)]
        self.is_done = self._scan.is_done
        return rest

    def take_arguments(self) -> str:
        """Takes what is new of the arguments; an argument list that was left out is empty."""
        if not self.name:
            return ""
        text = self._get_arguments()
        new = text[self._num_taken :]
        self._num_taken = len(text)
        if self.is_done and not text:
            return "{}"
        return new

    def _get_arguments(self) -> str:
        if not self._form.is_object:
            return self._scan.text
        members = self._scan.members
        # Models sometimes write the other one's key.
        keys = (self._form.arguments_key, "arguments", "parameters")
        key = next((key for key in keys if key in members), "")
        text = members.get(key, "")
        if not text.startswith('"'):
            return text
        return "" if self._scan.open_key == key else _read_json_text(text)

    def _find_name(self) -> None:
        key = self._form.name_key
        if key in self._scan.members and (self._scan.open_key != key or self._scan.is_done):
            self._set_name(json.loads(self._scan.members[key]))
        elif self._scan.is_done:
            raise ValueError("a call without a name")

    def _set_name(self, name: object) -> None:
        if not isinstance(name, str) or name not in self._names:
            raise ValueError(f"there is no function {name!r}")
        self.name = name

    def _check_beginning(self, text: str) -> None:
        """Checks that a name may begin like this."""
        middle = self._form.middle.strip()
        if not any((name + middle).startswith(text.lstrip()) for name in self._names):
            raise ValueError("no function begins like this")


def _read_json_text(text: str) -> str:
    """Reads arguments that a model wrote as JSON in a JSON text."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _make_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))


def _count_overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
