"""The texts that a bundle is compared on: enough of them, in any vocabulary."""

import ast

import pytest
from tokenizers import Regex, pre_tokenizers

from medusa_trt.export.comparison.passages import NUM_TOKENS, PASSAGES
from medusa_trt.export.models.gguf_splits import SPLITTINGS

USUAL = ("gpt-2", "llama3", "qwen2", "gpt-4o", "tekken", "deepseek-v3", "glm4", "smollm", "bloom")


@pytest.mark.parametrize("name", USUAL)
def test_a_passage_is_long_enough_whatever_its_words_are_merged_to(name: str) -> None:
    """A token never reaches over the pieces that a tokenizer splits a text into first."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITTINGS[name].patterns]
    )
    for passage in PASSAGES:
        assert len(split.pre_tokenize_str(passage)) >= NUM_TOKENS, passage


def test_passages_differ_and_the_code_is_code() -> None:
    assert len(set(PASSAGES)) == len(PASSAGES) == 4
    (code,) = [passage for passage in PASSAGES if passage.startswith("def ")]
    ast.parse(code)
