"""The tokenizer of a GGUF file, which splits, merges and marks as llama.cpp does with that file.

A file of a byte-level vocabulary names its splitting (`gguf_splits.py`); vocabularies of
SentencePiece are converted by transformers. transformers reads all splittings that it does not
know as GPT-2's, which cuts digits and runs of spaces in other places than the model learned.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from medusa_trt.errors import ExportError
from medusa_trt.export.models.end_tokens import END_TOKENS
from medusa_trt.export.models.gguf import read_gguf
from medusa_trt.export.models.gguf_splits import SPLITTINGS, Splitting

_FIELD = "tokenizer.ggml."
_NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Values of `token_type`: an ordinary token, one that steers the model, a word kept whole."""

_SPACE = "\u2581"

_KEEPS_SPACES = {"<unk>", "<s>", "<|endoftext|>"}
"""Phi-3's control tokens that leave the white space behind them; its other ones take it in
(llama.cpp, src/llama-vocab.cpp)."""


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Builds the tokenizer that a GGUF file describes; see `tokenizer_from_fields`."""
    return tokenizer_from_fields(read_tokenizer_fields(path), str(path))


def read_tokenizer_fields(path: Path) -> dict[str, Any]:
    """Reads a file's tokenizer fields: by their short names, with `name` and `chat_template`.

    Raises:
        ExportError: the file has no tokenizer.
    """
    stored = read_gguf(path, with_texts=True).fields
    fields = {
        name.removeprefix(_FIELD): value
        for name, value in stored.items()
        if name.startswith(_FIELD)
    }
    if not isinstance(fields.get("tokens"), list):
        raise ExportError(f"{path} holds no tokenizer: give a file of the whole model")
    fields["architecture"] = stored["general.architecture"]
    fields["name"] = stored.get("general.name", "")
    fields["chat_template"] = stored.get("tokenizer.chat_template")
    return fields


def tokenizer_from_fields(fields: Mapping[str, Any], place: str) -> PreTrainedTokenizerFast:
    """Builds a tokenizer from the fields of a file, which `place` names in messages.

    Raises:
        ExportError: the tokenizer or its splitting is of a kind that is not known.
    """
    kind = fields.get("model")
    if kind == "gemma4":  # llama.cpp adds the start token whatever the file says.
        fields = {**fields, "pre": "gemma4", "add_bos_token": True}
    if kind in ("gpt2", "gemma4"):
        tokenizer = _make_bpe_tokenizer(fields, place)
    elif kind == "llama":
        tokenizer = _make_sentencepiece_tokenizer(fields)
    else:
        raise ExportError(
            f"{place} has a tokenizer of kind {kind!r}, which is not read from GGUF files (gpt2 "
            "and llama are): give the model as a folder with its tokenizer.json"
        )
    _add_marked_tokens(tokenizer, fields)
    _add_start_and_end(tokenizer, fields)
    tokens = fields["tokens"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{
            name: tokens[fields[field]]
            for name, field in _NAMED_TOKENS.items()
            if 0 <= fields.get(field, -1) < len(tokens)
        },
    )


def _make_bpe_tokenizer(fields: Mapping[str, Any], place: str) -> Tokenizer:
    splitting = _find_splitting(fields, place)
    merges = [_split_merge(merge) for merge in fields.get("merges", ())]
    splits: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(text), "isolated") for text in splitting.patterns
    ]
    if splitting.is_raw:
        vocabulary = {token: index for index, token in enumerate(fields["tokens"])}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        vocabulary = _make_byte_level_vocabulary(fields)
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, ignore_merges=splitting.ignores_merges)
        )
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    """Parts a merge at its space; the first piece may itself begin with one."""
    place = merge.index(" ", 1)
    return merge[:place], merge[place + 1 :]


def _make_sentencepiece_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Spaces are written as SentencePiece does, with one more before the text by default."""
    tokenizer, _ = convert_gguf_tokenizer(
        str(fields.get("architecture", "llama")), {"tokenizer_type": "llama", **fields}
    )
    marks: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if fields.get("add_space_prefix", True):
        marks.insert(0, normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence(marks)
    tokenizer.pre_tokenizer = None
    if runs := [
        len(token)
        for token, kind in _pair_tokens_with_kinds(fields)
        if kind == _USER_DEFINED
        and token.strip(" ") == ""
        and tokenizer.token_to_id(_SPACE * len(token)) is not None
    ]:
        # Gemma's runs of spaces are words kept whole, the longest first.
        run = "|".join(f"{_SPACE}{{{length}}}" for length in sorted(runs, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(run), "isolated")
    return tokenizer


def _find_splitting(fields: Mapping[str, Any], place: str) -> Splitting:
    name = fields.get("pre", "default")
    try:
        return SPLITTINGS[name]
    except KeyError:
        raise ExportError(
            f"{place} splits its text in a way called {name!r} (tokenizer.ggml.pre), which is not "
            "known here: give the model as a folder with its tokenizer.json"
        ) from None


def _make_byte_level_vocabulary(fields: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token; ordinary tokens are written in the 256 letters that stand for bytes."""
    letters = bytes_to_unicode()
    byte_letters = set(letters.values())
    vocabulary = {}
    for index, (token, kind) in enumerate(_pair_tokens_with_kinds(fields)):
        is_marked = kind in (_CONTROL, _USER_DEFINED)
        if not is_marked and not set(token) <= byte_letters:
            token = "".join(letters[byte] for byte in token.encode())
        vocabulary[token] = index
    return vocabulary


def _pair_tokens_with_kinds(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Pairs each token with its type; tokens that end a turn are control tokens in any case.

    Some files call them ordinary, and llama.cpp then takes no notice of that.
    """
    tokens = fields["tokens"]
    kinds = fields.get("token_type", [_NORMAL] * len(tokens))
    for token, kind in zip(tokens, kinds, strict=True):
        yield token, _CONTROL if token in END_TOKENS else kind


def _add_marked_tokens(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    """Keeps control tokens and user-defined words whole, wherever they stand in a text."""
    name = str(fields.get("name", "")).lower()
    is_phi3 = "phi-3" in name or "phi3" in name
    added = [
        AddedToken(
            token,
            normalized=False,
            special=kind == _CONTROL,
            rstrip=is_phi3 and token not in _KEEPS_SPACES,
        )
        for token, kind in _pair_tokens_with_kinds(fields)
        if kind in (_CONTROL, _USER_DEFINED)
        # Gemma's runs of spaces are written with SentencePiece's mark, and merged from it. Added as
        # they are, they would be new tokens, which the model does not have.
        and tokenizer.token_to_id(token) is not None
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])


def _add_start_and_end(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    """Puts the start and end token around a text, where llama.cpp does."""
    is_sentencepiece = fields["model"] == "llama"
    starts = is_sentencepiece or SPLITTINGS[fields.get("pre", "default")].adds_start
    before, after, tokens = [], [], fields["tokens"]
    # llama.cpp's start token of a SentencePiece vocabulary that names none is number 1.
    start = fields.get("bos_token_id", 1 if is_sentencepiece else None)
    end = fields.get("eos_token_id", 2 if is_sentencepiece else None)
    if fields.get("add_bos_token", starts) and start is not None:
        before.append((tokens[start], start))
    if fields.get("add_eos_token", False) and end is not None:
        after.append((tokens[end], end))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if before or after:
        template = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[*before, *after]
        )
