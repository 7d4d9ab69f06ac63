"""Replies with calls in the forms of public models, read in one part or in many."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers.tool_templates import DEEPSEEK, FORMS, HERMES, LLAMA, MISTRAL, NAMED

from medusa_trt.serving.tools.forms import ToolForm
from medusa_trt.serving.tools.reading import CallPart, ToolReader

NAMES = ("look_up", "add")
A = '{"city": "Bern }]"}'
B = '{"x": 1, "y": [2, {}]}'
PYTHON = ToolForm(
    begin="",
    between=None,
    end="",
    name_key="name",
    arguments_key="parameters",
    prefix="<|python_tag|>",
)
Read = tuple[str, list[tuple[str, str]]]
CASES: list[tuple[ToolForm, str, str, list[tuple[str, str]]]] = [
    (
        FORMS[HERMES],
        f'Well.\n<tool_call>\n{{"name": "look_up", "arguments": {A}}}\n</tool_call>',
        "Well.",
        [("look_up", A)],
    ),
    (
        FORMS[HERMES],
        f'<tool_call>{{"name": "look_up", "arguments": {A}}}</tool_call>\n'
        f'<tool_call>\n{{"arguments": {B}, "name": "add"}}\n</tool_call>\n',
        "",
        [("look_up", A), ("add", B)],
    ),
    (FORMS[HERMES], "no call < at all <tool", "no call < at all <tool", []),
    (FORMS[HERMES], "<tool_call> nothing", "<tool_call> nothing", []),
    (FORMS[LLAMA], "{ ", "{ ", []),
    (
        FORMS[HERMES],
        f'<tool_call>{{"name": "other", "arguments": {A}}}</tool_call>',
        f'<tool_call>{{"name": "other", "arguments": {A}}}</tool_call>',
        [],
    ),
    (FORMS[HERMES], '<tool_call>\n{"name": "add"}', "", [("add", "{}")]),
    (FORMS[HERMES], '<tool_call>\n{"name": "a', '<tool_call>\n{"name": "a', []),
    (
        FORMS[HERMES],
        '<tool_call>\n{"name": "add", "arguments": {"x": 1',
        "",
        [("add", '{"x": 1')],
    ),
    (
        FORMS[HERMES],
        f'<tool_call>{{"name": "add", "arguments": {json.dumps(B)}}}</tool_call>',
        "",
        [("add", B)],
    ),
    (FORMS[LLAMA], f'{{"name": "add", "parameters": {B}}}', "", [("add", B)]),
    (PYTHON, f'<|python_tag|>{{"name": "add", "arguments": {B}}}', "", [("add", B)]),
    (PYTHON, " <|py", " <|py", []),
    (FORMS[LLAMA], f'Here: {{"name": "add", "parameters": {B}}}', None, []),  # type: ignore[list-item]
    (FORMS[LLAMA], '{"a": 1}\n', '{"a": 1}\n', []),
    (
        FORMS[MISTRAL],
        f'<s> [{{"name": "look_up", "arguments": {A}, "id": "123456789"}}]',
        None,  # type: ignore[list-item]
        [],
    ),
    (
        FORMS[MISTRAL],
        f'<s>[{{"name": "look_up", "arguments": {A}}},{{"name": "add", "arguments": {B}}}]',
        "",
        [("look_up", A), ("add", B)],
    ),
    (FORMS[NAMED], f"Ok [TOOL_CALLS]add[ARGS]{B}", "Ok", [("add", B)]),
    (
        FORMS[NAMED],
        f"[TOOL_CALLS]add[ARGS]{B}[TOOL_CALLS]look_up[ARGS] {A}",
        "",
        [("add", B), ("look_up", A)],
    ),
    (FORMS[NAMED], "[TOOL_CALLS]adder[ARGS]{}", "[TOOL_CALLS]adder[ARGS]{}", []),
    (
        FORMS[DEEPSEEK],
        f"<calls><call>add<sep>```json\n{B}\n```</call><call>look_up<sep>```json\n{A}\n```"
        "</call></calls>",
        "",
        [("add", B), ("look_up", A)],
    ),
]


def read(form: ToolForm, parts: list[str]) -> Read:
    reader = ToolReader(form, NAMES)
    found = [piece for part in parts for piece in reader.push(part)] + reader.finish()
    calls: list[list[str]] = []
    for piece in found:
        if isinstance(piece, CallPart):
            assert bool(piece.id) == bool(piece.name) == (piece.index == len(calls))
            if piece.id:
                assert piece.id.isalnum() and len(piece.id) == 9
                calls.append([piece.name, ""])
            calls[-1][1] += piece.arguments
    text = "".join(piece for piece in found if isinstance(piece, str))
    return text, [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(("form", "reply", "text", "calls"), CASES)
def test_calls_are_separated_from_text(
    form: ToolForm, reply: str, text: str | None, calls: list[tuple[str, str]]
) -> None:
    expected = (reply if text is None else text, calls)
    assert read(form, [reply]) == expected
    assert read(form, list(reply)) == expected


@given(case=st.sampled_from(CASES), data=st.data())
def test_a_reply_reads_the_same_wherever_it_is_cut(
    case: tuple[ToolForm, str, str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    form, reply, *_ = case
    cuts = data.draw(st.sets(st.integers(1, len(reply) - 1), max_size=6))
    places = [0, *sorted(cuts), len(reply)]
    assert read(form, [reply[a:b] for a, b in pairwise(places)]) == read(form, [reply])


@given(text=st.text(alphabet='<tool_cal>{}":\\ name\n[]', max_size=40))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    for form in FORMS.values():
        assert read(form, list(text)) == read(form, [text])
