"""Grammars on a tokenizer of bytes, and replies of noise under them."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from support.tiny_models import EOS_ID, VOCAB_SIZE, make_byte_tokenizer

from medusa_trt.runtime.processors.base import LogitsProcessor, RunningProcessor
from medusa_trt.runtime.processors.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarKind,
    GrammarTokenizer,
)


@cache
def byte_grammar_tokenizer() -> GrammarTokenizer:
    return GrammarTokenizer(make_byte_tokenizer().backend_tokenizer.to_str(), [EOS_ID])


def grammar(kind: GrammarKind, text: str) -> CompiledGrammar:
    return CompiledGrammar(Grammar(kind=kind, text=text), byte_grammar_tokenizer())


def schema_grammar(schema: object) -> CompiledGrammar:
    return CompiledGrammar(Grammar.from_json_schema(schema), byte_grammar_tokenizer())


def greedy_reply(
    processors: Sequence[LogitsProcessor],
    seed: int,
    *,
    vocab_size: int = VOCAB_SIZE,
    eos_id: int = EOS_ID,
    bias: Callable[[NDArray[np.float32]], None] | None = None,
) -> list[int]:
    """Greedy decoding where the model is noise; the reply without its end token."""
    rng = np.random.default_rng(seed)
    states = [processor.start([1, 2]) for processor in processors]
    reply: list[int] = []
    for _ in range(3_000):
        logits = rng.normal(0, 3, vocab_size).astype(np.float32)
        if bias is not None:
            bias(logits)
        for state in states:
            state.process(logits)
        token = int(logits.argmax())
        for state in states:
            state.accept(token)
        if token == eos_id:
            return reply
        reply.append(token)
    raise AssertionError("the reply does not end")


def text_of(reply: list[int]) -> str:
    text: str = make_byte_tokenizer().backend_tokenizer.decode(reply)
    return text


def allowed(state: RunningProcessor, vocab_size: int = VOCAB_SIZE) -> list[int]:
    logits = np.zeros(vocab_size, np.float32)
    state.process(logits)
    token_ids: list[int] = np.flatnonzero(logits > -np.inf).tolist()
    return token_ids


def ids_of(text: str) -> list[int]:
    ids: list[int] = make_byte_tokenizer().backend_tokenizer.encode(text).ids
    return ids
