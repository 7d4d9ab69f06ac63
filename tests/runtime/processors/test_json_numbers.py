"""A limit on the digits of a number in JSON, so that a reply does not consist of one number."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.grammars import greedy_reply, ids_of, schema_grammar, text_of

from medusa_trt.runtime.processors.json_numbers import MAX_DIGITS, DigitCount

DIGITS = ids_of("0123456789")


def love_digits(logits: NDArray[np.float32]) -> None:
    logits[DIGITS] += 100
    logits[ids_of("e")] += 50


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_loves_digits_ends_its_number(kind: str, seed: int) -> None:
    schema = {"type": "array", "items": {"type": kind}, "minItems": 3, "maxItems": 3}
    text = text_of(greedy_reply([schema_grammar(schema)], seed, bias=love_digits))
    assert max(map(len, re.findall(r"\d+", text))) <= MAX_DIGITS
    assert all(map(math.isfinite, json.loads(text)))


def test_texts_and_numbers_of_the_schema_may_be_longer() -> None:
    long = 10**30
    schema = {"type": "object", "properties": {"n": {"const": long}}, "required": ["n"]}
    text = text_of(greedy_reply([schema_grammar(schema | {"additionalProperties": False})], 0))
    assert json.loads(text) == {"n": long}
    schema = {"type": "string", "pattern": "^[0-9]{40}$"}
    text = text_of(greedy_reply([schema_grammar(schema)], 0, bias=love_digits))
    assert len(json.loads(text)) == 40


@given(st.recursive(st.integers() | st.text() | st.floats(allow_nan=False), st.lists))
def test_only_digits_at_the_end_of_a_number_count(value: object) -> None:
    text = json.dumps(value)
    count = DigitCount()
    for byte in text.encode():
        count.add(bytes([byte]))
    whole = DigitCount()
    whole.add(text.encode())
    digits = re.search(r"(e?)[+-]?(\d*)$", text)
    assert digits is not None
    assert count.is_full == whole.is_full == (len(digits[2]) >= (2 if digits[1] else MAX_DIGITS))
