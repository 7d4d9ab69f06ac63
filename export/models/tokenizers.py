"""Tokenizers as their files describe them, whatever class a checkpoint names.

A class of transformers may build its own splitting and drop what tokenizer.json says (version 5
reads a tokenizer.json with digits apart under the class GPT2Tokenizer as GPT-2's). What a
model was trained with is the file, so the file is what a bundle gets.
"""

from importlib import resources
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medusa_trt.errors import ExportError, require_extra
from medusa_trt.export.models.gguf_tokenizer import tokenizer_from_gguf
from medusa_trt.export.models.source import NO_REMOTE_CODE, ModelSource, name_in_errors
from medusa_trt.export.weights.checkpoint_files import json_from_file
from medusa_trt.export.weights.hub import find_file

_SENTENCEPIECE_FILE = "tokenizer.model"
_VOCABULARY_FILES = ("tokenizer.json", _SENTENCEPIECE_FILE, "vocab.json", "vocab.txt")
_TOKEN_FILES = ("merges.txt", "added_tokens.json", "special_tokens_map.json")
_CONFIG_FILE = "tokenizer_config.json"
_SETTINGS_FILES = (_CONFIG_FILE, "config.json")
_TEMPLATE_FILES = ("chat_template.jinja",)
"""Files of a tokenizer, of which an adapter may have some and its model the others."""

_PROCESSOR_TEMPLATE_FILE = "chat_template.json"

MIXED_TEXT = (
    "a   1\n\n\tIt's 1234567 x=3.14; don't WE'LL I'd\r\n    def f(x):\n\n        return [x]*2\n"
    "naïve café Straße ΑΒΓ привет สวัสดี 你好，世界。こんにちは 안녕 مرحبا "
    "😀👩\u200d🚀 e\u0301 \u00a0\u2003 \u200b end \n  two spaces first, ﬁ ① ｆｕｌｌ"
)
"""Text on which tokenizers differ: digits, runs of spaces, contractions, scripts, emoji."""


def load_tokenizer(source: ModelSource) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Loads a model's tokenizer with its chat template.

    What lies beside an adapter belongs to the model as it was tuned, and comes first.

    Returns:
        The tokenizer, and sentences that tell the user what differs from the usual case.

    Raises:
        ExportError: there is no fast tokenizer, its files contradict each other, or a GGUF file
            has one of an unknown kind.
    """
    warnings: tuple[str, ...] = ()
    with name_in_errors(source), TemporaryDirectory() as folder:
        if source.gguf is not None and not has_tokenizer_beside(source):
            tokenizer: PreTrainedTokenizerBase = tokenizer_from_gguf(source.gguf)
            if source.adapter is not None and (template := _read_template(source.adapter)):
                tokenizer.chat_template = template
        else:
            location, place = source.location, source.location
            if source.adapter is not None:
                location, place = folder, str(source.adapter)
                _gather_files(source, source.adapter, Path(folder))
            tokenizer, difference = _tokenizer_from_folder(location, place)
            warnings = () if difference is None else (difference,)
    if tokenizer.chat_template is None and source.gguf is None:
        tokenizer.chat_template = _read_processor_template(source)
    if isinstance(tokenizer.chat_template, dict):  # several, for tools and documents besides
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    template = None if source.alias is None else source.alias.chat_template
    if template is not None and tokenizer.chat_template is None:
        path = resources.files("medusa_trt.export.models.shipped") / template
        tokenizer.chat_template = path.read_text("utf-8")
    return tokenizer, warnings


def _read_processor_template(source: ModelSource) -> Any:
    """Reads a chat template that a model of several kinds of input has beside its tokenizer."""
    with name_in_errors(source):
        file = find_file(source.location, _PROCESSOR_TEMPLATE_FILE)
    return None if file is None else json_from_file(file).get("chat_template")


def has_tokenizer_beside(source: ModelSource) -> bool:
    """Whether an adapter has a vocabulary of its own."""
    adapter = source.adapter
    return adapter is not None and any((adapter / name).is_file() for name in _VOCABULARY_FILES)


def _gather_files(source: ModelSource, adapter: Path, folder: Path) -> None:
    """Copies a tokenizer's files into a folder: the adapter's, and the model's where it has none.

    An adapter with a vocabulary of its own takes only settings from the model, and one with
    settings besides takes nothing.
    """
    has_vocabulary = has_tokenizer_beside(source)
    is_whole = has_vocabulary and (adapter / _CONFIG_FILE).is_file()
    for name in (*_VOCABULARY_FILES, *_TOKEN_FILES, *_SETTINGS_FILES, *_TEMPLATE_FILES):
        file: Path | None = adapter / name
        if not (adapter / name).is_file():
            is_replaced = (
                is_whole
                or (has_vocabulary and name not in (*_SETTINGS_FILES, *_TEMPLATE_FILES))
                or (name in _TEMPLATE_FILES and _read_template(adapter) is not None)
            )
            file = None if is_replaced else find_file(source.location, name)
        if file is not None:
            copyfile(file, folder / name)


def _read_template(adapter: Path) -> Any:
    """Reads the chat template beside an adapter; None if there is none."""
    for name in _TEMPLATE_FILES:
        if (adapter / name).is_file():
            return (adapter / name).read_text("utf-8")
    config = adapter / _CONFIG_FILE
    return json_from_file(config).get("chat_template") if config.is_file() else None


def _tokenizer_from_folder(location: str, place: str) -> tuple[PreTrainedTokenizerBase, str | None]:
    """Loads a tokenizer of a folder or a hub id, which `place` names in messages.

    Returns:
        The tokenizer, and how transformers' class reads a text otherwise, in a sentence; None
        where both read the same.

    Raises:
        ExportError: there is no fast tokenizer, or its files contradict each other.
    """
    file = find_file(location, "tokenizer.json")
    if file is None and (model_file := find_file(location, _SENTENCEPIECE_FILE)) is not None:
        return _tokenizer_from_sentencepiece(location, model_file, place), None
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, **NO_REMOTE_CODE)
    if file is None:
        if not loaded.is_fast:
            raise ExportError(f"{place} has no fast tokenizer: convert it to tokenizer.json")
        return loaded, None
    stored = Tokenizer.from_file(str(file))
    stored.no_truncation()
    stored.no_padding()
    _add_tokens(stored, loaded, place)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=stored,
        chat_template=loaded.chat_template,
        clean_up_tokenization_spaces=False,
        **loaded.special_tokens_map,
    )
    return tokenizer, _describe_difference(tokenizer, loaded, file)


def _tokenizer_from_sentencepiece(location: str, file: Path, place: str) -> PreTrainedTokenizerBase:
    """Converts a model of SentencePiece, as folders without tokenizer.json have it.

    The classes of transformers, such as LlamaTokenizer, read runs of spaces otherwise.

    Raises:
        ExportError: sentencepiece is not installed, or reads a text otherwise.
    """
    name = f"{place}/{file.name}"
    with require_extra(f"reading {name}", "export", error_class=ExportError):
        from sentencepiece import SentencePieceProcessor
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(location, trust_remote_code=False)
    if "add_bos_token" not in tokenizer.init_kwargs:  # Those that add none say so.
        tokenizer.add_bos_token = True
    original = SentencePieceProcessor(model_file=str(file))
    for text in (MIXED_TEXT, *MIXED_TEXT.splitlines(keepends=True)):
        ids, original_ids = tokenizer.encode(text, add_special_tokens=False), original.encode(text)
        if ids != original_ids:
            raise ExportError(
                f"{name} cannot be converted: {text[:20]!r} comes out as "
                f"{tokenizer.convert_ids_to_tokens(ids)[:4]}, sentencepiece itself reads "
                f"{original.id_to_piece(original_ids)[:4]}; give the model with a tokenizer.json"
            )
    result: PreTrainedTokenizerBase = tokenizer
    return result


def _add_tokens(stored: Tokenizer, loaded: PreTrainedTokenizerBase, place: str) -> None:
    """Adds the tokens that other files of the checkpoint name, under the ids that they give."""
    known = stored.get_added_tokens_decoder()
    for token_id, token in sorted(loaded.added_tokens_decoder.items()):
        if token_id in known:
            continue
        present = stored.token_to_id(token.content)
        if present is None and token_id != stored.get_vocab_size():
            raise ExportError(
                f"{place} adds the token {token.content!r} as number {token_id}, its "
                f"tokenizer.json ends at {stored.get_vocab_size() - 1}: save the tokenizer again"
            )
        if present not in (None, token_id):
            raise ExportError(
                f"{place} gives the token {token.content!r} the number {token_id}, its "
                f"tokenizer.json {present}: save the tokenizer again"
            )
        stored.add_tokens([token])


def _describe_difference(
    tokenizer: PreTrainedTokenizerFast, loaded: PreTrainedTokenizerBase, file: Path
) -> str | None:
    for text in MIXED_TEXT.splitlines(keepends=True):
        ids, class_ids = tokenizer.encode(text), loaded.encode(text)
        if ids != class_ids:
            return (
                f"{type(loaded).__name__} of transformers reads {text[:20]!r} as "
                f"{loaded.convert_ids_to_tokens(class_ids)[:4]}, {file.name} as "
                f"{tokenizer.convert_ids_to_tokens(ids)[:4]}: the bundle keeps to the file"
            )
    return None
