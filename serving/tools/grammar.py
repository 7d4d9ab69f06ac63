"""A grammar of the replies that call functions with arguments of their schemas."""

import json
import re
from collections.abc import Mapping
from typing import Any

from medusa_trt.runtime.processors.grammar import Grammar, inline_schema
from medusa_trt.serving.tools.forms import ToolForm

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def make_call_grammar(
    form: ToolForm,
    schemas: Mapping[str, dict[str, Any] | None],
    special_tokens: Mapping[int, str],
    *,
    needs_call: bool,
    is_single: bool,
) -> Grammar:
    """Makes the grammar of a reply.

    Args:
        form: how the model writes calls.
        schemas: the schema of each function's arguments; None of one that takes none.
        special_tokens: the names of the tokens that are no text, by their ids.
        needs_call: whether the reply is at least one call, and nothing else; else text may stand
            before the calls, or in their place.
        is_single: whether there is at most one call.

    Raises:
        PromptError: a schema cannot be written as JSON.
    """
    write = _MarkWriter(special_tokens)
    has_more = form.between is not None and not is_single
    more = f"({write(form.between or '')} call)*" if has_more else ""
    rules = [f"calls: call {more} {write(form.end)}"]
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(schemas))))
    for index, (name, schema) in enumerate(schemas.items()):
        arguments = "%json " + inline_schema(_NO_ARGUMENTS if schema is None else schema)
        head, tail = _write_call(form, name)
        rules.append(f"call_{index}: {write(head)} {arguments} {write(tail)}")
    if needs_call:
        rules.append(f"start: {write(form.begin)} calls")
    elif not form.begin:
        rules += ["start: calls | TEXT |", r"TEXT: /[^{\s](.|\n)*/"]
    else:
        rules += _write_optional(form.begin.strip(), write, form.begin)
    return Grammar.from_lark("\n".join(rules) + "\n")


def _write_call(form: ToolForm, name: str) -> tuple[str, str]:
    """The texts before and after the arguments of a call."""
    if not form.is_object:
        return name + form.middle, ""
    keys = json.dumps(form.name_key), json.dumps(form.arguments_key)
    return f"{{{keys[0]}: {json.dumps(name)}, {keys[1]}: ", "}"


def _write_optional(mark: str, write: "_MarkWriter", begin: str) -> list[str]:
    """Rules of a reply that is text, or text and calls."""
    first, *_ = write.split(mark)
    rest = begin[begin.index(first) + len(first) :]
    text = r"TEXT: /(.|\n)*/"
    if first in write.ids:
        return [f"start: TEXT ({write(first)} {write(rest)} calls)?", text]
    # A lazy rule ends where its mark first occurs, so TEXT alone cannot hold it.
    rules = [
        f"start: TEXT_ONLY | trigger {write(rest)} calls",
        f"trigger[lazy]: TEXT {write(first)}",
    ]
    return [*rules, text, r"TEXT_ONLY: /(.|\n)*/"]


class _MarkWriter:
    """Writes texts for Lark, in which special tokens have a form of their own.

    Attributes:
        ids: the special tokens by their names.
    """

    def __init__(self, special_tokens: Mapping[int, str]) -> None:
        self.ids = {name: token_id for token_id, name in special_tokens.items()}
        names = sorted(filter(None, self.ids), key=len, reverse=True)
        self._names = re.compile("|".join(["(?!)", *map(re.escape, names)]))

    def split(self, text: str) -> list[str]:
        """Splits a text into special tokens and what stands between them."""
        parts, place = [], 0
        for match in self._names.finditer(text):
            parts += [text[place : match.start()], match.group()]
            place = match.end()
        return [part for part in (*parts, text[place:]) if part]

    def __call__(self, text: str) -> str:
        """Writes a text."""
        written = []
        for part in self.split(text):
            written.append(
                f"<[{self.ids[part]}]>"
                if part in self.ids
                else json.dumps(part, ensure_ascii=False)
            )
        return " ".join(written)
