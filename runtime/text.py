"""Between text and tokens: the bundle's tokenizer and its chat template."""

import json
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from tokenizers import Tokenizer

from medusa_trt.errors import BundleError, PromptError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.token_bytes import ByteDecoder, decoder_from_tokenizer

Message = Mapping[str, str]

_REPLACEMENT = "\ufffd"
"""What tokenizers decode an unfinished character to."""

_MAX_WINDOW = 24
"""Tokens that a stream decodes again with each piece, before it forgets all but the last piece."""


class TextCodec:
    """Encodes prompts, renders conversations and decodes streams for one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Loads the tokenizer.

        Raises:
            BundleError: the tokenizer's files cannot be read.
        """
        path = bundle.path / names.TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            # A checkpoint may bring limits from its training, which would silently cut prompts.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path} is damaged ({error}): export the model again") from error
        self._decoder = decoder_from_tokenizer(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        config = bundle.read_optional(names.TOKENIZER_CONFIG_FILE)
        self._special_tokens = _special_tokens(config)
        self._chat_template = bundle.read_optional(names.CHAT_TEMPLATE_FILE)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the model's own start token where it has one.

        Raises:
            PromptError: the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt is not valid Unicode at character {error.start}: give UTF-8 text"
            ) from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ending where the model's reply begins.

        Raises:
            PromptError: the model has no chat template, or the template refuses the messages.
        """
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The conversation as the model's chat template writes it.

        Args:
            messages: each with "role" and "content".

        Raises:
            PromptError: the model has no chat template, or the template refuses the messages.
        """
        if self._chat_template is None:
            raise PromptError("this model has no chat template: give a plain prompt (--raw)")
        try:
            template = _environment().from_string(self._chat_template)
            return template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program: besides its own errors, any other
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def special_token_id(self, text: str) -> int | None:
        """The id of a special token, which has no text in a reply; None for any other text."""
        token_id: int | None = self._tokenizer.token_to_id(text)
        return token_id if token_id in self._special_ids else None

    def stream(self) -> "TextStream":
        """A decoder for tokens that arrive one after the other."""
        return TextStream(self._tokenizer, self._decoder)


class TextStream:
    """Text of a growing token sequence, in pieces that never hold half a character.

    The pieces do not depend on how the tokens were grouped: pushed one by one or all at once, they
    add up to the same text. A byte that begins no character becomes U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: ByteDecoder | None) -> None:
        """Begins a stream.

        Args:
            tokenizer: the bundle's.
            decoder: what `decoder_from_tokenizer` makes of it.
        """
        self._decoder = decoder
        self._characters = getincrementaldecoder("utf-8")("replace")
        self._strips_space = decoder is not None and decoder.strips_first_space
        self._window = _Window(tokenizer)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; what ends inside a character is kept back."""
        if self._decoder is None:
            return self._window.push(token_ids)
        text = self._characters.decode(self._decoder.bytes_of(token_ids))
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text


class _Window:
    """The stream of a tokenizer whose tokens change with their neighbours, as WordPiece's do.

    Each piece is decoded behind the one before. The tokenizers' own `DecodeStream` raises where a
    decoder takes text back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._num_shown = 0
        self._shown = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete."""
        pieces = []
        for token_id in token_ids:
            self._token_ids.append(token_id)
            text = self._decode()
            if len(text) <= len(self._shown) or text.endswith(_REPLACEMENT):
                continue
            pieces.append(text[len(self._shown) :])
            self._shown = text
            if len(self._token_ids) > _MAX_WINDOW:
                del self._token_ids[: self._num_shown]
                self._shown = self._decode()
            self._num_shown = len(self._token_ids)
        return "".join(pieces)

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
        return text


def _special_tokens(config: str | None) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which chat templates refer to."""
    if config is None:
        return {}
    try:
        values = msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BundleError(f"{names.TOKENIZER_CONFIG_FILE} is damaged ({error})") from error
    found = {}
    for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        value = values.get(key := f"{kind}_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found


class _GenerationTag(Extension):
    """`{% generation %}` marks replies for training; here it only shows what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Refuses names that Python itself might call, as transformers does."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it; sandboxed, because a template comes with a model."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it in templates: with spaces, and without HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
