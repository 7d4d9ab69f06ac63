"""Folders with a tokenizer.model of SentencePiece and no tokenizer.json."""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from support.tiny_models import llama_config
from tokenizers import Tokenizer

from medusa_trt.errors import ExportError
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.models.tokenizers import load_tokenizer

LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "without a space before": LLAMA | {"add_dummy_prefix": False},
    "normalized": LLAMA | {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram"},
    "whole words": LLAMA | {"user_defined_symbols": ["<tool>", "naïve café"]},
}
NUM_TOKENS = 500
VICUNA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


PIECES = (
    *("the quick brown fox", "return [x]*2", "def f(x):", "It's don't WE'LL", "1234567", "3.14"),
    *(" ", "  ", "    ", "\n", "\r\n", "\t", "naïve café", "Straße", "ΑΒΓ", "привет мир"),
    *("สวัสดี", "你好，世界。", "こんにちは", "안녕", "مرحبا", "😀", "👩\u200d🚀", "e\u0301"),
    *("\u00a0", "\u2003", "ﬁ ① ｆｕｌｌ", "<0x0A>"),
)


def mixed_texts(count: int, seed: int) -> list[str]:
    """Makes texts of several pieces each, in a random order."""
    random_choice = random.Random(seed)
    return ["".join(random_choice.choices(PIECES, k=8)) for _ in range(count)]


def save_sentencepiece(folder: Path, config: dict[str, Any] | None, **options: Any) -> bytes:
    """Trains a model of SentencePiece on a few texts and saves it without a tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(mixed_texts(300, seed=1)),
        model_writer=model,
        vocab_size=NUM_TOKENS,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    llama_config(vocab_size=NUM_TOKENS).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return model.getvalue()


@pytest.mark.parametrize("config", [VICUNA, None])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_as_sentencepiece_reads_them(
    kind: str, config: dict[str, Any] | None, tmp_path: Path
) -> None:
    model = save_sentencepiece(tmp_path, config, **KINDS[kind])
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer, warnings = load_tokenizer(source_from_name(str(tmp_path)))
    assert warnings == ()
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    for text in (
        *mixed_texts(200, seed=2),
        "  two",
        "",
        " ",
        "a   1",
        "<tool>naïve café",
    ):
        ids = original.encode(text)
        assert saved.encode(text).ids == [original.bos_id(), *ids], text
        assert saved.decode(ids) == original.decode(ids)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_a_start_token_that_the_config_refuses_is_not_added(tmp_path: Path) -> None:
    model = save_sentencepiece(tmp_path, VICUNA | {"add_bos_token": False}, **LLAMA)
    tokenizer, _ = load_tokenizer(source_from_name(str(tmp_path)))
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.encode("a b") == original.encode("a b")


def test_another_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sentencepiece(tmp_path, VICUNA, **LLAMA)
    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "encode", lambda *_: [7, 7, 7])
    with pytest.raises(ExportError, match=r"tokenizer.model cannot be converted: .a   1"):
        load_tokenizer(source_from_name(str(tmp_path)))


def test_without_sentencepiece_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sentencepiece(tmp_path, VICUNA, **LLAMA)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ExportError, match=r"needs sentencepiece: pip install 'medusa-trt\[export"):
        load_tokenizer(source_from_name(str(tmp_path)))
