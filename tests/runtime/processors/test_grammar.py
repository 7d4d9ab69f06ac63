"""Grammars: whatever the logits say, the reply matches."""

import json
import re
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.grammars import (
    allowed,
    byte_grammar_tokenizer,
    grammar,
    greedy_reply,
    ids_of,
    schema_grammar,
    text_of,
)
from support.tiny_models import EOS_ID, VOCAB_SIZE, make_byte_tokenizer, sentencepiece_tokenizer

from medusa_trt.errors import BundleError, ProcessorError, PromptError
from medusa_trt.runtime.processors.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarKind,
    GrammarTokenizer,
)
from medusa_trt.runtime.processors.restrictions import BannedTokens, MinNewTokens

SHORT_TEXT = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": SHORT_TEXT,
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,8}[.](com|org)$"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"enum": ["red", "gr\u00fcn", 3, None, True]},
        "minItems": 2,
        "maxItems": 5,
    },
    "nested": {
        "type": "object",
        "properties": {
            "points": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
                    "required": ["x", "y"],
                    "additionalProperties": False,
                },
                "maxItems": 3,
            },
            "label": {"anyOf": [SHORT_TEXT, {"type": "null"}]},
        },
        "required": ["points", "label"],
        "additionalProperties": False,
    },
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
}


def conforms(value: object, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON schema's meaning that `SCHEMAS` uses, as the standard states it."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return any(conforms(value, option, root) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value is option or value == option for option in schema["enum"])
    kind = schema["type"]
    if kind == "object":
        assert isinstance(value, dict)
        properties = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(properties) and all(
            conforms(item, properties[key], root) for key, item in value.items()
        )
    if kind == "array":
        assert isinstance(value, list)
        return schema.get("minItems", 0) <= len(value) <= schema["maxItems"] and all(
            conforms(item, schema["items"], root) for item in value
        )
    if kind == "string":
        return isinstance(value, str) and (
            bool(re.search(schema["pattern"], value))
            if "pattern" in schema
            else len(value) <= schema["maxLength"]
        )
    if kind == "integer":
        return isinstance(value, int) and schema["minimum"] <= value <= schema["maximum"]
    types = {"number": (int, float), "boolean": (bool,), "null": (type(None),)}
    return isinstance(value, types[kind])


@pytest.mark.parametrize("name", SCHEMAS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_noise_becomes_json_of_the_schema(name: str, seed: int) -> None:
    schema = SCHEMAS[name]
    text = text_of(greedy_reply([schema_grammar(schema)], seed))
    assert conforms(json.loads(text), schema, schema), text


@pytest.mark.parametrize("seed", range(10))
def test_noise_becomes_any_json(seed: int) -> None:
    closing = ids_of('"}]')

    def close(logits: NDArray[np.float32]) -> None:
        logits[closing] += 8  # noise alone rarely ends an object

    text = text_of(greedy_reply([grammar("json_schema", "true")], seed, bias=close))
    json.loads(text)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_noise_becomes_a_match_of_the_regex(seed: int) -> None:
    pattern = r"(yes|no), \d{2}/[a-fA-F]+( é|\n)?"
    ascii_pattern = pattern.replace(r"\d", "[0-9]")
    text = text_of(greedy_reply([grammar("regex", ascii_pattern)], seed))
    assert re.fullmatch(pattern, text), text


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_noise_becomes_a_sentence_of_the_lark_grammar(seed: int) -> None:
    source = 'start: "(" start ")" | /[0-9]{1,3}/'
    text = text_of(greedy_reply([grammar("lark", source)], seed))
    assert re.fullmatch(r"(\(*)[0-9]{1,3}(\)*)", text)
    assert text.count("(") == text.count(")")


@pytest.mark.parametrize("kind", ["regex", "lark", "json_schema"])
def test_a_complete_grammar_allows_only_the_end(kind: GrammarKind) -> None:
    text = {"regex": '"ab"', "lark": r'start: "\"ab\""', "json_schema": '{"const": "ab"}'}[kind]
    state = grammar(kind, text).start([])
    for token in ids_of('"ab"'):
        assert allowed(state) == [token]
        state.accept(token)
    assert allowed(state) == [EOS_ID]
    state.accept(EOS_ID)
    assert allowed(state) == [EOS_ID]


def test_the_end_is_allowed_where_the_text_may_stop() -> None:
    state = grammar("regex", "a+").start([])
    (letter,) = ids_of("a")
    assert allowed(state) == [letter]
    state.accept(letter)
    assert allowed(state) == [letter, EOS_ID]


def test_every_end_token_may_end_the_reply() -> None:
    tokenizer = GrammarTokenizer(make_byte_tokenizer().backend_tokenizer.to_str(), [EOS_ID, 256])
    state = CompiledGrammar(Grammar.from_regex("a?"), tokenizer).start([])
    assert allowed(state) == [*ids_of("a"), 256, EOS_ID]
    state.accept(256)
    assert allowed(state) == [256, EOS_ID]


def test_stop_ids_end_a_complete_grammar_and_are_no_part_of_its_text() -> None:
    letter, stop = ids_of("ab")
    spec = CompiledGrammar(Grammar.from_regex("a[ab]*"), byte_grammar_tokenizer(), stop_ids=[stop])
    state = spec.start([])
    assert allowed(state) == [letter]
    state.accept(letter)
    assert allowed(state) == [letter, stop, EOS_ID]
    logits = np.random.default_rng(0).normal(0, 3, VOCAB_SIZE).astype(np.float32)
    before = logits.copy()
    state.process(logits)
    assert logits[stop] == before[stop]
    state.accept(stop)
    assert allowed(state) == [letter, stop, EOS_ID]


def test_allowed_logits_stay_as_they_are_and_no_other_token_passes() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, VOCAB_SIZE).astype(np.float32)
    before = logits.copy()
    grammar("regex", "[a-d]").start([]).process(logits)
    letters = ids_of("abcd")
    np.testing.assert_array_equal(logits[letters], before[letters])
    assert np.isneginf(np.delete(logits, letters)).all()


def test_one_grammar_serves_many_replies() -> None:
    shared = schema_grammar(SCHEMAS["object"])
    alone = [greedy_reply([schema_grammar(SCHEMAS["object"])], seed) for seed in range(4)]
    assert [greedy_reply([shared], seed) for seed in range(4)] == alone
    ab = grammar("regex", "ab")
    first, second = ab.start([]), ab.start([])
    first.accept(ids_of("a")[0])
    assert allowed(first) == ids_of("b")
    assert allowed(second) == ids_of("a") == allowed(ab.start([]))


def test_whitespace_between_json_values_is_bounded() -> None:
    space, newline = ids_of(" \n")

    def loop_on_spaces(logits: NDArray[np.float32]) -> None:
        logits[[space, newline]] += 100

    text = text_of(greedy_reply([schema_grammar(SCHEMAS["object"])], 0, bias=loop_on_spaces))
    assert max(len(run) for run in re.findall(r"[ \t\n]*", text)) <= 33
    for schema in ("true", "{}"):
        state = grammar("json_schema", schema).start([])
        for token in ids_of("[\n" + " " * 32):
            assert token in allowed(state)
            state.accept(token)
        assert not {space, newline} & set(allowed(state))
    indented = json.dumps({"name": "x", "age": 3}, indent=4)
    state = schema_grammar(SCHEMAS["object"]).start([])
    for token in ids_of(indented):
        assert token in allowed(state)
        state.accept(token)


def test_a_schema_may_choose_compact_json() -> None:
    schema = SCHEMAS["object"] | {"x-guidance": {"whitespace_flexible": False}}
    assert allowed(schema_grammar(schema).start([])) == ids_of("{")
    state = schema_grammar(schema).start([])
    state.accept(ids_of("{")[0])
    assert allowed(state) == ids_of('"')


@pytest.mark.parametrize("seed", range(20))
def test_a_sentencepiece_tokenizer_serves_grammars(seed: int) -> None:
    tokenizer = sentencepiece_tokenizer()
    schema = SCHEMAS["nested"]
    shared = GrammarTokenizer(tokenizer.to_str(), [2])
    spec = CompiledGrammar(Grammar.from_json_schema(json.dumps(schema)), shared)
    size = tokenizer.get_vocab_size()
    reply = greedy_reply([spec], seed, vocab_size=size, eos_id=2)
    text = tokenizer.decode(reply)
    assert conforms(json.loads(text), schema, schema), text


def test_processing_allocates_nothing_of_the_vocabularys_size() -> None:
    document = json.loads(make_byte_tokenizer().backend_tokenizer.to_str())
    document["model"]["vocab"] |= {f"zz{index}": 258 + index for index in range(50_000)}
    tokenizer = GrammarTokenizer(json.dumps(document), [EOS_ID])
    state = CompiledGrammar(Grammar.from_regex(re.compile(".{1,9}")), tokenizer).start([])
    logits = np.zeros(51_000, np.float32)
    state.process(logits)
    tracemalloc.start()
    state.process(logits)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type": "objec"}', "Invalid type: objec"),
        ("json_schema", '{"type": "object"', "truncated"),
        ("json_schema", '{"type": "object"}, "lark": 1', "trailing characters"),
        ("json_schema", "null", "an object, true or false, and not null"),
        ("json_schema", "[]", "schema must be an object or boolean"),
        ("json_schema", "false", "schema is false"),
        ("json_schema", '{"$ref": "#/nope"}', "'/nope' does not exist"),
        ("json_schema", '{"not": {"type": "string"}}', "Unimplemented keys"),
        ("json_schema", '{"type": "string", "format": "zz"}', "Unknown format: zz"),
        ("regex", "(a | b", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"[^\s\S]", "no text matches it"),
        ("regex", "a\\", "a backslash that escapes nothing"),
        ("regex", "\udc00", "surrogates not allowed"),
        ("lark", "start: word", 'unknown name: "word"'),
        ("lark", "", "Empty grammar"),
        ("lark", "start: start", "no text matches it"),
    ],
)
def test_an_unusable_grammar_is_one_clear_line(kind: GrammarKind, text: str, reason: str) -> None:
    with pytest.raises(PromptError, match=r"cannot be used \(.*\): correct it") as caught:
        grammar(kind, text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grammar_that_is_too_large_says_so_in_the_reply() -> None:
    with pytest.raises(ProcessorError, match=r"cannot go on \(.*too many .*\): simplify it"):
        greedy_reply([grammar("regex", "a{99999999}")], 0)


def test_the_flags_of_a_compiled_expression_are_kept() -> None:
    assert Grammar.from_regex(re.compile(r"a\\", re.I | re.S)).text == r"(?is)a\\"
    assert Grammar.from_regex(re.compile("a")).text == "a"
    with pytest.raises(PromptError, match=r"has the flag re\.ASCII"):
        Grammar.from_regex(re.compile("a", re.ASCII))


@pytest.mark.parametrize("pattern", [5, None, b"a", re.compile(b"a")])
def test_what_is_no_expression_is_refused(pattern: Any) -> None:
    with pytest.raises(PromptError, match=r"text is .*: it must be text"):
        Grammar.from_regex(pattern)


def test_processors_that_leave_no_token_are_an_error() -> None:
    ban = BannedTokens(token_ids=ids_of("a"))
    with pytest.raises(ProcessorError, match="does not allow token 0, and another"):
        greedy_reply([grammar("regex", "a"), ban], 0, bias=lambda logits: logits.fill(0))
    minimum = MinNewTokens(num_tokens=5, eos_token_ids=[EOS_ID])
    with pytest.raises(ProcessorError, match="does not allow token"):
        greedy_reply([grammar("regex", "a"), minimum], 0)
    with pytest.raises(ProcessorError, match="does not allow token 299"):
        grammar("regex", "a").start([]).accept(VOCAB_SIZE - 1)


def test_an_end_token_beyond_the_models_vocabulary_is_an_error() -> None:
    state = grammar("regex", "a").start([])
    with pytest.raises(ProcessorError, match=f"names token {EOS_ID}"):
        state.process(np.zeros(EOS_ID, np.float32))


@pytest.mark.parametrize(("text", "eos_token_ids"), [("{}", [1]), ("nope", [1]), (None, [400])])
def test_an_unusable_tokenizer_is_one_clear_line(
    text: str | None, eos_token_ids: list[int]
) -> None:
    text = make_byte_tokenizer().backend_tokenizer.to_str() if text is None else text
    with pytest.raises(BundleError, match="tokenizer does not work with grammars") as caught:
        GrammarTokenizer(text, eos_token_ids)
    assert "\n" not in str(caught.value)


def test_a_grammar_needs_an_end_token() -> None:
    text = make_byte_tokenizer().backend_tokenizer.to_str()
    with pytest.raises(PromptError, match=r"names no end token.*--stop-id"):
        GrammarTokenizer(text, [])


def test_the_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(PromptError, match=r"pip install 'medusa-trt\[grammar\]'"):
        GrammarTokenizer("{}", [1])
