"""Grammars of calls: noise under them is read back as calls with arguments of their schemas."""

import json
from typing import Any

import pytest
from support.grammars import allowed, byte_grammar_tokenizer, greedy_reply, ids_of, text_of
from support.servers.tool_templates import DEEPSEEK, FORMS, HERMES, LLAMA, MISTRAL, NAMED

from medusa_trt.runtime.processors.grammar import CompiledGrammar
from medusa_trt.serving.tools.grammar import make_call_grammar
from medusa_trt.serving.tools.reading import CallPart, ToolReader

SCHEMAS: dict[str, dict[str, Any] | None] = {
    "look_up": {
        "type": "object",
        "properties": {"kind": {"$ref": "#/$defs/Kind"}, "count": {"type": "integer"}},
        "required": ["kind", "count"],
        "additionalProperties": False,
        "$defs": {"Kind": {"enum": ["a", "b"]}},
    },
    "stop": None,
}
STOP = '{"name": "stop", "arguments": {}}'
SPECIAL = {256: "<s>", 257: "</s>"}


def compile_calls(template: str, *, needs_call: bool, is_single: bool = False) -> CompiledGrammar:
    grammar = make_call_grammar(
        FORMS[template], SCHEMAS, SPECIAL, needs_call=needs_call, is_single=is_single
    )
    return CompiledGrammar(grammar, byte_grammar_tokenizer())


def read_calls(template: str, reply: list[int]) -> list[CallPart]:
    text = "".join(SPECIAL.get(token) or text_of([token]) for token in reply)
    reader = ToolReader(FORMS[template], SCHEMAS.keys())
    parts = reader.push(text) + reader.finish()
    calls = [part for part in parts if isinstance(part, CallPart)]
    assert len(calls) == len(parts), parts
    return calls


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, NAMED, DEEPSEEK])
@pytest.mark.parametrize("seed", range(3))
def test_a_reply_that_needs_a_call_is_one(template: str, seed: int) -> None:
    grammar = compile_calls(template, needs_call=True)
    calls = read_calls(template, greedy_reply([grammar], seed))
    assert calls
    for call in calls:
        arguments = json.loads(call.arguments)
        if call.name == "look_up":
            assert arguments["kind"] in ("a", "b") and isinstance(arguments["count"], int)
        else:
            assert arguments == {}


@pytest.mark.parametrize("template", [HERMES, MISTRAL, NAMED, DEEPSEEK])
def test_a_single_call_stays_alone(template: str) -> None:
    grammar = compile_calls(template, needs_call=True, is_single=True)
    for seed in range(5):
        assert len(read_calls(template, greedy_reply([grammar], seed))) == 1


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (
            HERMES,
            ["no call", "", 'Well: <tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'],
        ),
        (LLAMA, ["no {call}", '{"name": "stop", "parameters": {}}']),
        (MISTRAL, ["no call", '<s>[{"name": "stop", "arguments": {}}]']),
    ],
)
def test_text_may_stand_in_the_place_of_calls(template: str, texts: list[str]) -> None:
    grammar = compile_calls(template, needs_call=False)
    for text in texts:
        state = grammar.start([])
        for token in ids_of(text):
            state.accept(token)
        assert 257 in allowed(state), text


@pytest.mark.parametrize(
    ("template", "begin"),
    [(HERMES, "<tool_call>\n{"), (LLAMA, '{"name"'), (MISTRAL, "<s>")],
)
def test_what_begins_a_call_has_to_be_one(template: str, begin: str) -> None:
    state = compile_calls(template, needs_call=False).start([])
    for token in ids_of(begin):
        state.accept(token)
    assert 257 not in allowed(state) and len(allowed(state)) < 5
