"""Schemas that llguidance refuses or stumbles over, in a form that it takes."""

import json
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from support.grammars import allowed, greedy_reply, ids_of, schema_grammar, text_of

from medusa_trt.errors import PromptError
from medusa_trt.runtime.processors.grammar import Grammar
from medusa_trt.runtime.processors.json_schema import simplify_schema

TEXT = {"type": "string", "maxLength": 3}
CLOSING = ids_of('"}]:,a')


def reply(schema: Any, seed: int) -> Any:
    """The JSON value that noise becomes, where texts and objects end sooner than by chance."""
    rng = np.random.default_rng(seed)

    def close(logits: NDArray[np.float32]) -> None:
        logits[CLOSING] += 8 * rng.random()

    return json.loads(text_of(greedy_reply([schema_grammar(schema)], seed, bias=close)))


def accepts(schema: Any, text: str) -> bool:
    state = schema_grammar(schema).start([])
    for token in ids_of(text):
        if token not in allowed(state):
            return False
        state.accept(token)
    return True


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("^id$", ["id"]),
        ("^(id|x)$", ["id", "x"]),
        ("^i", ["id"]),
        ("^(x|y)$", ["x"]),
        ("a", ["id"]),
    ],
)
@pytest.mark.parametrize("is_required", [False, True])
def test_a_property_may_also_match_a_pattern(
    pattern: str, names: list[str], is_required: bool
) -> None:
    required = names * is_required
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "patternProperties": {pattern: {"maxLength": 2}},
        "additionalProperties": False,
        "required": required,
    }
    for seed in range(20):
        value = reply(schema, seed)
        assert set(required) <= set(value)
    assert accepts(schema, json.dumps(dict.fromkeys(names, "ab")))
    assert accepts(schema, json.dumps(dict.fromkeys(names, "abc"))) == (pattern == "a")


@pytest.mark.parametrize(
    "rule",
    [
        {"uniqueItems": False},
        {"unevaluatedProperties": True},
        {"propertyNames": {}},
        {"dependentRequired": {}},
        {"not": False},
        {"then": {"type": "null"}},
        {"if": {"type": "null"}},
        {"minContains": 2},
    ],
    ids=str,
)
def test_a_rule_that_demands_nothing_is_left_out(rule: dict[str, Any]) -> None:
    assert accepts({"type": "array", "items": rule | {"type": "integer"}, **rule}, "[1,1]")


def test_names_of_properties_are_no_rules() -> None:
    schema = {"properties": {"uniqueItems": {"const": False}, "format": {"const": "path"}}}
    assert simplify_schema(schema, lambda _: True) == schema
    assert simplify_schema({"const": {"uniqueItems": False}}, lambda _: True) == {
        "const": {"uniqueItems": False}
    }


@pytest.mark.parametrize("rule", [{"uniqueItems": True}, {"not": {}}, {"format": "regex"}], ids=str)
def test_a_rule_that_cannot_be_enforced_is_still_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="cannot be used"):
        schema_grammar({"type": "string", "minLength": 1} | rule)


@pytest.mark.parametrize(
    ("format_", "text", "wrong"),
    [
        ("password", "x y", None),
        ("binary", "x y", None),
        ("file-path", "/a b", None),
        ("directory-path", "/a", None),
        ("path", "a", None),
        ("base64", "YWI+", "YW"),
        ("base64url", "YW-_", "YW+/"),
        ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
        ("uuid7", "123e4567-e89b-72d3-a456-426614174000", "123e4567-e89b-42d3-a456-426614174000"),
        ("ipvanyaddress", "10.0.0.1", "x"),
        ("ipvanynetwork", "10.0.0.0", "10.0"),
        ("ipv4network", "10.0.0.0", "::1"),
        ("ipv6interface", "::1", "10.0.0.0"),
        ("name-email", "a@b.com", "a"),
        ("multi-host-uri", "mongodb://h/d", "h"),
        ("json-pointer", "/a~0b/c", "a"),
    ],
)
def test_formats_of_pydantic_and_openapi(format_: str, text: str, wrong: str | None) -> None:
    schema = {"type": "string", "format": format_}
    assert accepts(schema, json.dumps(text))
    assert wrong is None or not accepts(schema, json.dumps(wrong))


START = r"^(?!^[-+.]*$)[+-]?0*"
DECIMALS = [
    (None, None, START + r"\d*\.?\d*$"),
    (5, None, START + r"(?:\d{0,5}|(?=[\d.]{1,6}0*$)\d*\.\d*0*$)"),
    (None, 2, START + r"\d*\.?\d{0,2}0*$"),
    (5, 2, START + r"(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)"),
    (2, 2, START + r"(?:\d{0,0}|(?=[\d.]{1,3}0*$)\d{0,0}\.\d{0,2}0*$)"),
]
"""Limits of a Pydantic decimal, and the pattern of its JSON schema in Pydantic 2.12."""


@pytest.mark.parametrize(("max_digits", "places", "pattern"), DECIMALS)
def test_decimals_of_pydantic(max_digits: int | None, places: int | None, pattern: str) -> None:
    limits = Field(max_digits=max_digits, decimal_places=places)
    adapter = TypeAdapter[Decimal](Annotated[Decimal, limits])
    for seed in range(20):
        adapter.validate_python(reply({"type": "string", "pattern": pattern}, seed))


def test_dicts_with_listed_and_described_keys() -> None:
    integers = {"type": "object", "additionalProperties": {"type": "integer"}}
    keys = integers | {"propertyNames": {"$ref": "#/$defs/K"}, "$defs": {"K": {"enum": ["a", "b"]}}}
    assert accepts(keys, '{"a": 1, "b": 2}') and not accepts(keys, '{"c')
    assert not accepts(integers | {"propertyNames": {"minLength": 2}}, '{"a"')
    assert accepts(integers | {"propertyNames": {"pattern": "^x"}}, '{"xy": 1}')


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=5)
    age: int


@pytest.mark.parametrize("source", [Person, TypeAdapter(Person), Person.model_json_schema()])
def test_a_schema_comes_from_pydantic_or_a_dict(source: object) -> None:
    grammar = Grammar.from_json_schema(source)
    assert json.loads(grammar.text) == Person.model_json_schema()
    for seed in range(5):
        Person.model_validate(reply(source, seed))


@pytest.mark.parametrize("source", [5, None, [1], {"const": object()}])
def test_what_is_no_schema_is_refused(source: object) -> None:
    with pytest.raises(PromptError, match=r"is not a JSON schema|cannot be used"):
        Grammar.from_json_schema(source)
