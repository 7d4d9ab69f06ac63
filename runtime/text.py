"""Between text and tokens: the bundle's tokenizer and its chat template."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from medusa_trt.errors import BundleError, PromptError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle

Message = Mapping[str, str]


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
                messages=messages, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def stream(self) -> "TextStream":
        """A decoder for tokens that arrive one after the other."""
        return TextStream(self._tokenizer)


class TextStream:
    """Text of a growing token sequence, in pieces that never hold half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; what ends inside a character is kept back."""
        return self._decoder.step(self._tokenizer, list(token_ids)) or ""


def _special_tokens(config: str | None) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which chat templates refer to."""
    if config is None:
        return {}
    try:
        values = msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BundleError(f"{names.TOKENIZER_CONFIG_FILE} is damaged ({error})") from error
    found = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = values.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it; sandboxed, because a template comes with a model."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(value: object, indent: int | None = None) -> str:
    text = msgspec.json.encode(value)
    return (msgspec.json.format(text, indent=indent) if indent else text).decode()


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
