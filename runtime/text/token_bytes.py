"""The bytes of each token, so that a text can be built token by token."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

_SPACE = "\u2581"
"""Letter that stands for a space in SentencePiece tokens."""


class ByteDecoder:
    """Decodes tokens whose text does not depend on their neighbours."""

    def __init__(self, tokenizer: Tokenizer, kind: str, *, strips_first_space: bool) -> None:
        """Prepares a decoder.

        Args:
            tokenizer: the bundle's tokenizer.
            kind: "byte_level" if each letter of a token stands for a byte, "byte_fallback" if
                tokens are text and `<0xE9>` is a byte.
            strips_first_space: whether one space at the beginning of a text is removed.
        """
        self.strips_first_space = strips_first_space
        self._tokenizer = tokenizer
        self._kind = kind
        self._letters = make_byte_letters()
        special = tokenizer.get_added_tokens_decoder().items()
        self._bytes = {token_id: b"" for token_id, token in special if token.special}

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """Returns the bytes of these tokens; special tokens and unknown ids have none."""
        token_bytes = self._bytes
        for token_id in token_ids:
            if token_id not in token_bytes:
                token_bytes[token_id] = self._look_up(token_id)
        return b"".join([token_bytes[token_id] for token_id in token_ids])

    def _look_up(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._kind == "byte_level":
            letters = self._letters
            if all(letter in letters for letter in token):
                return bytes(letters[letter] for letter in token)
            return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes((int(token[3:5], 16),))
            except ValueError:
                pass
        return token.replace(_SPACE, " ").encode()


def decoder_from_tokenizer(tokenizer: Tokenizer) -> ByteDecoder | None:
    """Makes the decoder of a tokenizer; None if a token's text depends on its neighbours."""
    decoder = tokenizer.decoder
    steps = [] if decoder is None else _list_steps(json.loads(decoder.__getstate__()))
    if steps == [("ByteLevel",)]:
        return ByteDecoder(tokenizer, "byte_level", strips_first_space=False)
    replace_space = ("Replace", _SPACE, " ")
    if steps[:2] != [replace_space, ("ByteFallback",)]:
        return None
    rest = [step for step in steps[2:] if step != ("Fuse",)]
    if rest not in ([], [("Strip", " ", 1, 0)]):
        return None
    return ByteDecoder(tokenizer, "byte_fallback", strips_first_space=bool(rest))


def _list_steps(decoder: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Lists a decoder's steps with their settings."""
    kind = decoder["type"]
    if kind == "Sequence":
        return [step for inner in decoder["decoders"] for step in _list_steps(inner)]
    if kind == "Replace":
        return [(kind, decoder["pattern"].get("String"), decoder["content"])]
    if kind == "Strip":
        return [(kind, decoder["content"], decoder["start"], decoder["stop"])]
    return [(kind,)]


def make_byte_letters() -> dict[str, int]:
    """Maps the 256 letters of byte-level tokenizers to their bytes.

    Source: GPT-2's `bytes_to_unicode`. Printable Latin-1 letters stand for themselves; the letters
    from U+0100 on stand for the other bytes, in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters
