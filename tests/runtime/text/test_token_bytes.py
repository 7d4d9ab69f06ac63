"""The bytes of single tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models

from medusa_trt.runtime.text.token_bytes import decoder_from_tokenizer, make_byte_letters

SENTENCEPIECE = [
    decoders.Replace("\u2581", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def make(words: list[str], decoder: decoders.Decoder) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def test_letters_of_byte_level_tokens_are_those_of_gpt_2() -> None:
    letters = make_byte_letters()
    assert sorted(letters.values()) == list(range(256))
    # "Ġ" is the space and "Ċ" the line break in every byte-level vocabulary.
    assert (letters["a"], letters["Ġ"], letters["Ċ"]) == (ord("a"), ord(" "), ord("\n"))


def test_byte_level_tokens_are_bytes() -> None:
    decoder = decoder_from_tokenizer(make(["Ġa", "Ã", "漢"], decoders.ByteLevel()))
    assert decoder is not None and not decoder.strips_first_space
    assert decoder.decode([0, 1]) == b" a\xc3"
    assert decoder.decode([2]) == "漢".encode()  # a token that is no byte-level text
    assert decoder.decode([3, 99]) == b""  # special, unknown


def test_sentencepiece_tokens_are_text_or_one_byte() -> None:
    words = ["\u2581a", "<0xE9>", "<0xZZ>"]
    decoder = decoder_from_tokenizer(make(words, decoders.Sequence(SENTENCEPIECE)))
    assert decoder is not None and decoder.strips_first_space
    assert decoder.decode([0, 1, 2, 3]) == b" a\xe9<0xZZ>"


@pytest.mark.parametrize(
    "decoder", [decoders.WordPiece(), decoders.Sequence([*SENTENCEPIECE, decoders.Metaspace()])]
)
def test_tokens_that_depend_on_their_neighbours_have_no_bytes(decoder: decoders.Decoder) -> None:
    assert decoder_from_tokenizer(make(["a"], decoder)) is None
