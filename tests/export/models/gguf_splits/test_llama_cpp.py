"""Splittings of texts against what llama.cpp makes of the same files.

`llama_cpp_ids.json` holds the ids that llama.cpp (llama-cpp-python 0.3.36) gives for texts that
tokenizers read differently, with SmolLM2's vocabulary under one name of each splitting. It has
null where llama.cpp only approximates the regular expression of the model's tokenizer.json.
`raw` is a small vocabulary whose tokens are texts, with llama.cpp's ids.
"""

import json
from pathlib import Path

import pytest
from support.checkpoints.gguf_tokenizers import read_smollm2_fields, tokenizer_of

from medusa_trt.export.models.gguf_splits import SPLITTINGS

EXPECTED = json.loads(Path(__file__).with_name("llama_cpp_ids.json").read_text("utf-8"))
RAW = {"gemma4": "gemma4", "sarvam-moe": "gpt2"}
"""Splittings of vocabularies that are no byte letters, with the kind of tokenizer."""


@pytest.mark.parametrize("pre", EXPECTED["ids"])
def test_texts_are_split_as_llama_cpp_splits_them(pre: str) -> None:
    tokenizer = tokenizer_of(read_smollm2_fields(), pre=pre, add_bos_token=None)
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
