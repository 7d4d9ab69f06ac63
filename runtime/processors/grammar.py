"""Replies that match a JSON schema, a regular expression or a Lark grammar, through llguidance."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from medusa_trt.errors import BundleError, GrammarError, ProcessorError, PromptError, require_extra
from medusa_trt.runtime.processors.base import RunningProcessor, check_vocabulary
from medusa_trt.runtime.processors.json_numbers import DigitCount
from medusa_trt.runtime.processors.json_schema import simplify_schema
from medusa_trt.types_of_options import check_types

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

_LONE_BACKSLASH = re.compile(r"(?<!\\)(\\\\)*\\$")
"""The end of a regular expression whose last backslash escapes nothing."""

_IS_NOT_ALLOWED = re.compile("^$|satisfy the grammar|no error message")
"""Messages of llguidance about a token that a grammar forbids; others name a limit."""

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
            PromptError: llguidance is not installed, or there is no end token.
            BundleError: the tokenizer is damaged, or llguidance does not support it.
        """
        with require_extra("a grammar", "grammar", error_class=PromptError):
            from llguidance import LLTokenizer
        if not eos_token_ids:
            raise PromptError(
                "this model names no end token, which a reply with a grammar ends with: "
                "give stop_ids (--stop-id)"
            )
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

    @cached_property
    def digit_ids(self) -> NDArray[np.intp]:
        """The tokens that begin with a digit; finding them takes 20 ms for 49,152 tokens."""
        decode = self.compiled.decode_bytes
        return np.array(
            [i for i in range(self.compiled.vocab_size) if decode([i])[:1].isdigit()], np.intp
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """A language that a reply must belong to: `GenerationOptions(grammar=...)`.

    Attributes:
        kind: language of `text`.
        text: a JSON schema as JSON (draft 2020-12; a rule that cannot be enforced is an error; the
            keys of an object come in the schema's order; see `JSON_WHITESPACE` and `MAX_DIGITS`), a
            regular expression (Rust's syntax; it must match the whole reply; no look-around), or a
            grammar in llguidance's dialect of Lark.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        check_types(self, PromptError)

    @classmethod
    def from_json_schema(cls, schema: object) -> "Grammar":
        """Makes a grammar of the JSON texts that conform to a schema.

        Args:
            schema: a schema as JSON or as a dict; a class of Pydantic, or its `TypeAdapter`.

        Raises:
            PromptError: it is none of these.
        """
        if isinstance(schema, str):
            return cls(kind="json_schema", text=schema)
        make = getattr(schema, "model_json_schema", None) or getattr(schema, "json_schema", None)
        document = make() if callable(make) else schema
        if not isinstance(document, Mapping | bool):
            raise PromptError(
                f"{schema!r} is not a JSON schema: give a dict, JSON, or a Pydantic model"
            )
        try:
            return cls(kind="json_schema", text=msgspec.json.encode(document).decode())
        except (TypeError, ValueError) as error:
            raise _unusable_error("json_schema", str(error)) from error

    @classmethod
    def from_regex(cls, pattern: str | re.Pattern[str]) -> "Grammar":
        """Makes a grammar of the texts that a regular expression matches as a whole.

        Args:
            pattern: an expression, or a compiled one, whose flags are kept.

        Raises:
            PromptError: it is neither, or has a flag that Rust's syntax lacks.
        """
        if not isinstance(pattern, re.Pattern):
            return cls(kind="regex", text=pattern)
        if unknown := pattern.flags & ~(re.UNICODE | re.I | re.M | re.S | re.X):
            raise PromptError(
                f"the regular expression has the flag {re.RegexFlag(unknown)!r}: leave it out"
            )
        flags = "".join(name for name in "imsx" if pattern.flags & re.RegexFlag[name.upper()])
        return cls(kind="regex", text=f"(?{flags}){pattern.pattern}" if flags else pattern.pattern)

    @classmethod
    def from_lark(cls, text: str) -> "Grammar":
        """Makes a grammar from llguidance's dialect of Lark."""
        return cls(kind="lark", text=text)


class CompiledGrammar:
    """Makes the reply match a grammar; a complete match allows only an end token.

    Compiling a small schema takes 1 ms, processing the logits of 49,152 tokens 0.02 to 0.5 ms.
    """

    def __init__(
        self, grammar: Grammar, tokenizer: GrammarTokenizer, *, stop_ids: Sequence[int] = ()
    ) -> None:
        """Compiles a grammar for the tokenizer of a bundle.

        Args:
            grammar: the grammar.
            tokenizer: has the end tokens of the model.
            stop_ids: further tokens that end the reply, where the grammar is complete, and that are
                no part of its text.

        Raises:
            PromptError: the grammar cannot be used.
        """
        from llguidance import LLMatcher, LLParserLimits

        self._tokenizer, self._stop_ids = tokenizer, tuple(stop_ids)
        self._counts_digits = grammar.kind == "json_schema" or "%json" in grammar.text
        self._matcher = LLMatcher(
            tokenizer.compiled,
            _compile_definition(grammar.kind, grammar.text),
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if self._matcher.is_error():
            raise _unusable_error(grammar.kind, self._matcher.get_error())
        # llguidance finds out that no text matches a grammar when it computes the first mask.
        self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _unusable_error(grammar.kind, "no text matches it")

    def start(self, prompt_ids: Sequence[int]) -> RunningProcessor:
        """See `LogitsProcessor`."""
        digits = DigitCount() if self._counts_digits else None
        return _RunningGrammar(self._matcher.deep_copy(), self._tokenizer, self._stop_ids, digits)


class _RunningGrammar:
    """The state of one reply; see `RunningProcessor`."""

    def __init__(
        self,
        matcher: "LLMatcher",
        tokenizer: GrammarTokenizer,
        stop_ids: tuple[int, ...],
        digits: DigitCount | None,
    ) -> None:
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        self._matcher = matcher
        self._fill = fill_next_token_bitmask
        self._tokenizer, self._digits = tokenizer, digits
        self._vocab_size = tokenizer.compiled.vocab_size
        self._stop_ids, self._stop_places = frozenset(stop_ids), np.array(stop_ids, np.intp)
        self._largest_end_id = max(*tokenizer.eos_token_ids, *stop_ids, -1)
        self._bitmask = allocate_token_bitmask(1, self._vocab_size)
        self._octets = self._bitmask.view(np.uint8)[0]
        self._indices = np.empty(len(self._octets), np.intp)
        self._bounds = np.empty((len(self._octets), 8), np.float32)

    def process(self, logits: NDArray[np.float32]) -> None:
        check_vocabulary(self._largest_end_id, logits)
        self._fill(self._matcher, self._bitmask)
        if self._matcher.is_error():
            raise self._make_error()
        ends = logits[self._stop_places] if self._matcher.is_accepting() else -np.inf
        # Looking up a table row for each octet takes 12 µs for 49,152 tokens, whatever the mask.
        # Unpacking the bits takes 14 to 180 µs, and one byte of memory for each token.
        np.copyto(self._indices, self._octets)
        np.take(_BOUNDS, self._indices, axis=0, out=self._bounds, mode="clip")
        size = min(len(logits), self._vocab_size)
        np.minimum(logits[:size], self._bounds.reshape(-1)[:size], out=logits[:size])
        # A model may have more logits than its tokenizer has tokens.
        logits[size:] = -np.inf
        logits[self._stop_places] = ends
        if self._digits is not None and self._digits.is_full:
            self._forbid_digits(logits)

    def _forbid_digits(self, logits: NDArray[np.float32]) -> None:
        """Ends a number that is long enough, where the schema lets it end."""
        ids = self._tokenizer.digit_ids
        digits = logits[ids]
        logits[ids] = -np.inf
        if np.isneginf(logits.max()):
            logits[ids] = digits

    def _make_error(self) -> ProcessorError:
        reason = _join_lines(self._matcher.get_error())
        return ProcessorError(f"the grammar cannot go on ({reason}): simplify it")

    def accept(self, token: int) -> None:
        if token in self._stop_ids:
            return  # The reply has ended; what drafts follow is not used.
        if token >= self._vocab_size or not self._matcher.consume_token(token):
            if not _IS_NOT_ALLOWED.search(self._matcher.get_error()):
                raise self._make_error()
            raise ProcessorError(
                f"the grammar does not allow token {token}, and another logits processor forbids "
                "the tokens that it allows: remove one of them"
            )
        if self._digits is not None:
            self._digits.add(self._tokenizer.compiled.decode_bytes([token]))


def inline_schema(schema: dict[str, Any]) -> str:
    """Writes a JSON schema so that it may stand behind %json in a Lark grammar.

    Raises:
        ValueError: it cannot be written as JSON.
    """
    settings: object = schema.get("x-guidance")
    simple = simplify_schema(schema, _has_further_properties)
    if not (isinstance(settings, dict) and "whitespace_flexible" in settings):
        further = settings if isinstance(settings, dict) else {}
        simple |= {"x-guidance": {"whitespace_pattern": JSON_WHITESPACE, **further}}
    return msgspec.json.encode(simple).decode()


def _compile_definition(kind: GrammarKind, text: str) -> str:
    """Translates a grammar into the form that llguidance's matcher reads."""
    from llguidance import LLMatcher

    try:
        if kind == "regex":
            if _LONE_BACKSLASH.search(text):  # llguidance would leave it out without a word.
                raise _unusable_error(kind, "it ends in a backslash that escapes nothing")
            return LLMatcher.grammar_from_regex(text)
        if kind == "lark":
            return LLMatcher.grammar_from_lark(text)
        schema: Any = msgspec.json.decode(text)
        if schema is True:
            schema = {}
        if schema is None:
            raise _unusable_error(kind, "a schema is an object, true or false, and not null")
        # Only an object takes settings; the matcher refuses other values.
        if not isinstance(schema, dict):
            return LLMatcher.grammar_from_json_schema(text)
        return LLMatcher.grammar_from_json_schema(inline_schema(schema))
    except (msgspec.DecodeError, ValueError) as error:
        raise _unusable_error(kind, str(error)) from error


def _has_further_properties(schema: dict[str, Any]) -> bool:
    """Whether an object whose required properties are null can have further ones.

    llguidance answers this at the first mask after the comma.
    """
    from llguidance import LLMatcher, LLTokenizer

    document = schema | {"x-guidance": {"whitespace_flexible": False}}
    text = msgspec.json.encode(document).decode()
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(text), log_level=0)
    if matcher.is_error():
        return True  # The schema itself will be refused, with its own message.
    nulls = b"".join(msgspec.json.encode(name) + b":null," for name in schema["required"])
    matcher.consume_tokens(list(b"{" + nulls))
    matcher.compute_bitmask()
    return not matcher.is_error()


def _unusable_error(kind: GrammarKind, reason: str) -> GrammarError:
    return GrammarError(
        f"the {_KIND_NAMES[kind]} cannot be used ({_join_lines(reason)}): correct it"
    )


def _join_lines(message: str) -> str:
    """Joins the lines of an llguidance message, without those that point into a source."""
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line for line in lines if not _SOURCE_POINTER.fullmatch(line))[:300]
