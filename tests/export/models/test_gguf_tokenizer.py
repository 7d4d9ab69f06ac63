"""Tokenizers made of the fields of GGUF files."""

import pytest
from support.checkpoints.gguf_tokenizers import read_smollm2_fields, tokenizer_of

from medusa_trt.errors import ExportError
from medusa_trt.export.models.gguf_tokenizer import tokenizer_from_fields


def test_the_demo_model_keeps_runs_of_spaces_and_parts_digits() -> None:
    tokenizer = tokenizer_of(read_smollm2_fields())
    ids = tokenizer.encode("a   1 23")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "ĠĠĠ", "1", "Ġ", "2", "3"]


def test_an_unknown_splitting_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="'brand-new'"):
        tokenizer_from_fields(read_smollm2_fields() | {"pre": "brand-new"}, "x.gguf")


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="'rwkv'"):
        tokenizer_from_fields(read_smollm2_fields() | {"model": "rwkv"}, "x.gguf")


@pytest.mark.parametrize(
    ("pre", "stated", "starts"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)
def test_start_tokens_are_those_of_llama_cpp(pre: str, stated: bool | None, starts: bool) -> None:
    tokenizer = tokenizer_of(read_smollm2_fields(), pre=pre, add_bos_token=stated)
    assert (tokenizer.encode("hi")[0] == 1) is starts


def test_user_defined_words_stay_whole() -> None:
    """MPT's file has runs of spaces so, written as they are."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    fields = {"model": "gpt2", "pre": "mpt", "tokens": [*letters, "    ", "<think>"]}
    kinds = [1] * len(letters) + [4, 4]
    tokenizer = tokenizer_of(fields, token_type=kinds)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("x    y<think>"))
    assert tokens == ["x", "    ", "y", "<think>"]


def test_a_token_that_ends_a_turn_stays_whole_whatever_the_file_calls_it() -> None:
    """Some files call it an ordinary token; llama.cpp reads the same ids."""
    fields = read_smollm2_fields()
    kinds = list(fields["token_type"])
    kinds[2] = 1
    tokenizer = tokenizer_of(fields, token_type=kinds, eos_token_id=0, padding_token_id=0)
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


@pytest.mark.parametrize(("run", "kind"), [("   ", 1), ("   ", 4), ("\u2581" * 3, 1)])
def test_spaces_that_are_no_token_stay_with_their_word(run: str, kind: int) -> None:
    """The ids are llama.cpp's. It takes a run for one token where the file calls it a word kept
    whole, and puts a space before what follows."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256))]
    space, _, run_id, space_a = range(259, 263)
    tokenizer = tokenizer_of(
        {"model": "llama", "tokens": [*tokens, "\u2581", "a", run, "\u2581a"]},
        token_type=[2, 3, 3] + [6] * 256 + [1, 1, kind, 1],
        scores=[0.0] * 259 + [-1.0, -2.0, -0.5, -0.75],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    expected = {
        "a  a": [space_a, space, space_a],
        "a    a": [space_a, space, space, space, space_a],
    }
    if kind == 4:
        expected["a    a"] = [space_a, run_id, space, space_a]
    for text, ids in expected.items():
        assert tokenizer.encode(text) == [1, *ids]
