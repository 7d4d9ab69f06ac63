"""Conversion between text and tokens: the bundle's tokenizer and its chat template."""

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any

import msgspec
from jinja2 import Template
from tokenizers import Tokenizer

from medusa_trt.errors import BundleError, PromptError
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.processors.grammar import CompiledGrammar, GrammarTokenizer
from medusa_trt.runtime.text.chat_template import find_variables, make_environment
from medusa_trt.runtime.text.prompts import ChatPrompt, Message, message_with_plain_content
from medusa_trt.runtime.text.token_bytes import ByteDecoder, decoder_from_tokenizer
from medusa_trt.types_of_options import find_invalid_character

_REPLACEMENT = "\ufffd"
"""Character that tokenizers return for an unfinished character."""

_TEMPLATE_INPUTS = {"messages", "tools", "add_generation_prompt"}
"""What every chat template reads; a caller gives it in other ways."""

_PROBE = "What is this?"
"""A message that shows what a chat template reads."""

_MAX_WINDOW = 24
"""Number of tokens that a stream decodes again for each piece, before it drops the older ones."""


class TextCodec:
    """Encodes prompts, renders conversations and decodes streams for one bundle.

    Attributes:
        special_tokens: the names of the special tokens, which are no text, by their ids.
        eos_token_ids: the tokens that end a reply.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Loads the tokenizer.

        Raises:
            BundleError: the tokenizer's files cannot be read.
        """
        path = bundle.path / names.TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            # The tokenizer may hold limits from the training, which would silently cut prompts.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path} is damaged ({error}): export the model again") from error
        self._decoder = decoder_from_tokenizer(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = {i: token.content for i, token in added.items() if token.special}
        config = bundle.read_optional(names.TOKENIZER_CONFIG_FILE)
        self._template_tokens = _read_special_tokens(config)
        self._chat_template = bundle.read_optional(names.CHAT_TEMPLATE_FILE)
        self._start_ids, self._num_end = _find_added_ids(self._tokenizer)
        self.eos_token_ids = bundle.manifest.model.eos_token_ids
        self._grammar_lock = Lock()
        self._grammar_tokenizer: GrammarTokenizer | None = None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return self._chat_template is not None

    @cached_property
    def _compiled_template(self) -> Template:
        return make_environment().from_string(self._chat_template or "")

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template shows text only as a part of a list, as those of LLaVA do."""

        def shows(content: object) -> bool:
            messages = [{"role": "user", "content": content}]
            try:
                text = self._compiled_template.render(
                    {**self._template_tokens, "messages": messages}
                )
            except Exception:  # a template is a program, so it can raise any exception
                return False
            return _PROBE in text

        return not shows(_PROBE) and shows(_make_parts(_PROBE))

    @cached_property
    def _template_variables(self) -> set[str]:
        """Names of the values that a caller may give to the chat template."""
        return find_variables(self._chat_template or "") - _TEMPLATE_INPUTS

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encodes a text as token ids, with the model's start token if it has one.

        A start token in the text is not doubled. An end token, which some tokenizers add, is left
        out: after it a model begins another text.

        Raises:
            PromptError: the text is not valid Unicode.
        """
        if wrong := find_invalid_character(text):
            raise PromptError(f"the prompt holds {wrong!r}, which is no Unicode: give UTF-8 text")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        if not add_special_tokens:
            return ids
        start, num_end = self._start_ids, self._num_end
        is_doubled = ids[: len(start)] == ids[len(start) : 2 * len(start)] == start
        return ids[len(start) * is_doubled : len(ids) - num_end]

    def encode_chat(self, prompt: ChatPrompt | Sequence[Message]) -> list[int]:
        """Encodes a conversation as token ids, up to the beginning of the model's reply.

        Raises:
            PromptError: see `render_chat`.
        """
        return self.encode(self.render_chat(prompt), add_special_tokens=False)

    def render_chat(self, prompt: ChatPrompt | Sequence[Message], *, is_whole: bool = False) -> str:
        """Renders a conversation with the model's chat template.

        Args:
            prompt: the conversation; messages alone are one without tools and variables.
            is_whole: whether the text ends with the last message; else a reply begins after it.

        Raises:
            PromptError: the model has no chat template, a message has something else than text, or
                the template refuses the messages or does not read a variable.
        """
        if self._chat_template is None:
            raise PromptError("this model has no chat template: give a plain prompt (--raw)")
        if not isinstance(prompt, ChatPrompt):
            prompt = ChatPrompt(messages=prompt)
        if prompt.variables:
            self.check_variables(prompt.variables)
        plain = [
            message_with_plain_content(message, self._chat_template) for message in prompt.messages
        ]
        if self._wants_parts:
            plain = [{**message, "content": _make_parts(message["content"])} for message in plain]
        begun = "" if is_whole else prompt.begun_reply
        values = {
            **self._template_tokens,
            "documents": None,
            **prompt.variables,
            "messages": plain,
            "tools": list(prompt.tools) or None,
            "add_generation_prompt": not begun and not is_whole,
        }
        try:
            text = self._compiled_template.render(values)
        except Exception as error:  # a template is a program, so it can raise any exception
            raise PromptError(f"the chat template refuses this conversation: {error}") from error
        return _cut_after(text, begun) if begun else text

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Checks that the chat template reads these values.

        Raises:
            PromptError: it does not read one of them.
        """
        for name in variables:
            if name not in self._template_variables:
                known = ", ".join(sorted(self._template_variables))
                only = f", only {known}" if known else " and no other"
                raise PromptError(
                    f"the chat template reads no variable {name!r}{only}: leave it out"
                )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes tokens as text, without special tokens."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be a part of a character; of a special one its name."""
        if token_id in self.special_tokens or self._decoder is None:
            name: str | None = self._tokenizer.id_to_token(token_id)
            return (name or "").encode()
        return self._decoder.decode([token_id])

    def prepare_options(self, options: GenerationOptions) -> GenerationOptions:
        """Makes logits processors of the penalties and of the grammar, which needs the tokenizer.

        Raises:
            PromptError: the grammar cannot be used.
            BundleError: the tokenizer does not work with grammars.
        """
        processors = [*options.penalties, *options.processors]
        if options.grammar is not None:
            tokenizer = self._open_grammar_tokenizer(tuple(self.eos_token_ids) or options.stop_ids)
            processors.append(
                CompiledGrammar(options.grammar, tokenizer, stop_ids=options.stop_ids)
            )
        return replace(
            options,
            processors=tuple(processors),
            grammar=None,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
        )

    def _open_grammar_tokenizer(self, ends: tuple[int, ...]) -> GrammarTokenizer:
        """Returns the tokenizer for grammars; one alone is kept, because it takes 40 MB."""
        # A server asks from several threads at once, and making one takes 50 MB for a moment.
        with self._grammar_lock:
            kept = self._grammar_tokenizer
            if kept is None or kept.eos_token_ids != ends:
                kept = self._grammar_tokenizer = GrammarTokenizer(self._tokenizer.to_str(), ends)
            return kept

    def stream(self, shown: Mapping[int, str] | None = None) -> "TextStream":
        """Makes a decoder for tokens that arrive one after the other.

        Args:
            shown: what the text has for special tokens, by their ids; of others it has nothing.
        """
        return TextStream(self._tokenizer, self._decoder, shown)


def _cut_after(text: str, begun: str) -> str:
    """Cuts off what the chat template writes after the begun reply, such as an end token.

    Templates may strip white space. Source: `continue_final_message` of transformers.
    """
    for end in (begun.lstrip(), begun.strip()):
        head, begun_as_shown, _ = text.rpartition(end)
        if begun_as_shown:
            return head + begun_as_shown
    raise PromptError(
        "the chat template does not show the last message as it is, so the reply cannot go on with "
        "it: end with a user's message"
    )


class TextStream:
    """Decodes a growing token sequence, in pieces of whole characters.

    The text does not depend on how the tokens are grouped: pushed one by one or all at once, they
    give the same text. An invalid byte becomes U+FFFD.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoder: ByteDecoder | None,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        """Begins a stream.

        Args:
            tokenizer: the bundle's tokenizer.
            decoder: made from it by `decoder_from_tokenizer`.
            shown: what the text has for special tokens, by their ids.
        """
        self._decoder, self._shown = decoder, shown or {}
        self._characters = getincrementaldecoder("utf-8")("replace")
        self._strips_space = decoder is not None and decoder.strips_first_space
        self._window = _WindowStream(tokenizer)

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that these tokens complete; an unfinished character comes later."""
        for place, token_id in enumerate(token_ids):
            if token_id in self._shown:
                before, rest = token_ids[:place], token_ids[place + 1 :]
                return self._push(before) + self._shown[token_id] + self.push(rest)
        return self._push(token_ids)

    def _push(self, token_ids: Sequence[int]) -> str:
        if self._decoder is None:
            return self._window.push(token_ids)
        text = self._characters.decode(self._decoder.decode(token_ids))
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text


class _WindowStream:
    """Text stream for tokenizers whose tokens depend on their neighbours, such as WordPiece.

    Each piece is decoded together with the one before. `DecodeStream` of tokenizers does not serve:
    it raises where more tokens make the text shorter.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._num_shown = 0
        self._shown = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """See `TextStream.push`."""
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


def _find_added_ids(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Finds the tokens that the tokenizer writes before each text, and how many after it."""
    plain, ids = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    for start in range(len(ids)):
        if ids[start : start + len(plain)] == plain:
            return list(ids[:start]), len(ids) - start - len(plain)
    return [], 0


def _make_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _read_special_tokens(config: str | None) -> dict[str, str]:
    """Reads `bos_token`, `eos_token` and the like, which chat templates use."""
    if config is None:
        return {}
    try:
        values = msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BundleError(f"{names.TOKENIZER_CONFIG_FILE} is damaged ({error})") from error
    tokens = {}
    for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        value = values.get(key := f"{kind}_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[key] = value
    return tokens
