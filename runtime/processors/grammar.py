"""Replies that match a JSON schema, a regular expression or a Lark grammar, through llguidance."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import BundleError, ProcessorError, PromptError
from medusa_trt.runtime.processors.base import RunningProcessor, check_vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

GrammarKind = Literal["json_schema", "regex", "lark"]

JSON_WHITESPACE = r"\n?[ \t]{0,32}"
"""Longest whitespace between two tokens of JSON: a line break and its indentation.

The JSON standard sets no limit, and a model that is unsure of the next token can then fill the
reply with whitespace."""

_KIND_NAMES: dict[GrammarKind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "lark": "Lark grammar",
}
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BOUNDS = np.where(_BITS == 1, np.inf, -np.inf).astype(np.float32)
"""(256, 8) upper bounds of the logits of eight tokens, for each value of a bitmask's octet."""

_SOURCE_POINTER = re.compile(r"\^*|\d+ \|.*|<non-verbose/>")
"""A line of an llguidance message that only points into a grammar's source."""


class GrammarTokenizer:
    """A bundle's tokenizer, compiled for grammars.

    Compiling takes 0.2 s for 49,152 tokens, so make one for a bundle and share it.
    """

    def __init__(self, tokenizer_json: str, eos_token_ids: Sequence[int]) -> None:
        """Compiles a tokenizer.

        Args:
            tokenizer_json: the text of the bundle's `tokenizer.json`.
            eos_token_ids: the tokens that end a reply.

        Raises:
            PromptError: llguidance is not installed.
            BundleError: the tokenizer is damaged, llguidance does not support it, or there is no
                end token.
        """
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise PromptError(
                "a grammar needs llguidance: pip install 'medusa-trt[grammar]'"
            ) from error
        try:
            document = msgspec.json.decode(tokenizer_json, type=dict[str, msgspec.Raw])
            # These settings are for training; llguidance's own loader drops them too.
            document |= {"truncation": msgspec.Raw(b"null"), "padding": msgspec.Raw(b"null")}
            text = msgspec.json.encode(document).decode()
            self.compiled = LLTokenizer(text, eos_token=list(eos_token_ids))
        except (msgspec.DecodeError, ValueError) as error:
            raise BundleError(
                f"the bundle's tokenizer does not work with grammars ({_join_lines(str(error))}): "
                "generate without a grammar"
            ) from error
        self.eos_token_ids = tuple(eos_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """Makes the reply match a grammar; a complete match allows only an end token.

    Compiling a small schema takes 1 ms, processing the logits of 49,152 tokens 0.02 to 0.5 ms.

    Attributes:
        kind: language of `text`.
        text: a JSON schema as JSON (draft 2020-12; a rule that llguidance cannot enforce is an
            error; the keys of an object come in the schema's order; see `JSON_WHITESPACE`), a
            regular expression (Rust's syntax; it must match the whole reply; no look-around), or
            a grammar in llguidance's dialect of Lark.
        tokenizer: the bundle's tokenizer.
    """

    kind: GrammarKind
    text: str
    tokenizer: GrammarTokenizer
    _matcher: "LLMatcher" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(
            self.tokenizer.compiled,
            _compile_definition(self.kind, self.text),
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if matcher.is_error():
            raise _unusable_error(self.kind, matcher.get_error())
        # llguidance finds out that no text matches a grammar when it computes the first mask.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise _unusable_error(self.kind, "no text matches it")
        object.__setattr__(self, "_matcher", matcher)

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        return _RunningGrammar(self._matcher.deep_copy(), self.tokenizer)


class _RunningGrammar:
    """The state of one reply; see `RunningProcessor`."""

    def __init__(self, matcher: "LLMatcher", tokenizer: GrammarTokenizer) -> None:
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        self._matcher = matcher
        self._fill = fill_next_token_bitmask
        self._vocab_size = tokenizer.compiled.vocab_size
        self._largest_eos_id = max(tokenizer.eos_token_ids)
        self._bitmask = allocate_token_bitmask(1, self._vocab_size)
        self._octets = self._bitmask.view(np.uint8)[0]
        self._indices = np.empty(len(self._octets), np.intp)
        self._bounds = np.empty((len(self._octets), 8), np.float32)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_eos_id, logits)
        self._fill(self._matcher, self._bitmask)
        if self._matcher.is_error():
            raise ProcessorError(
                f"the grammar cannot go on ({_join_lines(self._matcher.get_error())}): simplify it"
            )
        # Looking up a table row for each octet takes 12 µs for 49,152 tokens, whatever the mask.
        # Unpacking the bits takes 14 to 180 µs, and one byte of memory for each token.
        np.copyto(self._indices, self._octets)
        np.take(_BOUNDS, self._indices, axis=0, out=self._bounds, mode="clip")
        size = min(len(logits), self._vocab_size)
        np.minimum(logits[:size], self._bounds.reshape(-1)[:size], out=logits[:size])
        # A model may have more logits than its tokenizer has tokens.
        logits[size:] = -np.inf

    def accept(self, token: int) -> None:
        if token >= self._vocab_size or not self._matcher.consume_token(token):
            raise ProcessorError(
                f"the grammar does not allow token {token}, and another logits processor forbids "
                "the tokens that it allows: remove one of them"
            )


def _compile_definition(kind: GrammarKind, text: str) -> str:
    """Translates a grammar into the form that llguidance's matcher reads."""
    from llguidance import LLMatcher

    try:
        if kind == "regex":
            return LLMatcher.grammar_from_regex(text)
        if kind == "lark":
            return LLMatcher.grammar_from_lark(text)
        schema: object = msgspec.json.decode(text)
        if schema is True:
            schema, text = {}, "{}"
        settings: object = schema.get("x-guidance") if isinstance(schema, dict) else None
        sets_whitespace = isinstance(settings, dict) and "whitespace_flexible" in settings
        # Only an object takes settings; the matcher refuses other values.
        if sets_whitespace or not isinstance(schema, dict):
            return LLMatcher.grammar_from_json_schema(text)
        return LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": JSON_WHITESPACE})
    except (msgspec.DecodeError, ValueError) as error:
        raise _unusable_error(kind, str(error)) from error


def _unusable_error(kind: GrammarKind, reason: str) -> PromptError:
    return PromptError(
        f"the {_KIND_NAMES[kind]} cannot be used ({_join_lines(reason)}): correct it"
    )


def _join_lines(message: str) -> str:
    """Joins the lines of an llguidance message, without those that point into a source."""
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line for line in lines if not _SOURCE_POINTER.fullmatch(line))[:300]
