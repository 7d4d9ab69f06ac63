"""The restrictions against those of transformers, and forced tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processor_rows import (
    EOS_IDS,
    process_rows,
    prompts,
    random_rows,
    reference_from_transformers,
    reference_rows,
    seeds,
    tokens,
)
from transformers.generation import logits_process as hf

from medusa_trt.errors import ProcessorError
from medusa_trt.runtime.processors.restrictions import BannedTokens, ForcedTokens, MinNewTokens

few_tokens = st.lists(st.integers(0, 2), max_size=20)
"""Of three tokens, so that words of them often occur."""
words = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8)


@given(few_tokens.filter(bool), few_tokens, seeds, words)
def test_banned_words_equal_transformers(
    prompt: list[int], reply: list[int], seed: int, banned: list[list[int]]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = reference_from_transformers(hf.NoBadWordsLogitsProcessor(banned))
    ours = process_rows(BannedTokens(sequences=banned), prompt, reply, rows)
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


@given(prompts, tokens, seeds, tokens)
def test_banned_tokens_equal_transformers(
    prompt: list[int], reply: list[int], seed: int, banned: list[int]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = reference_from_transformers(hf.SuppressTokensLogitsProcessor(banned))
    ours = process_rows(BannedTokens(token_ids=banned), prompt, reply, rows)
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


@given(prompts, tokens, seeds, st.integers(0, 25))
def test_minimum_length_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, num_tokens: int
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = reference_from_transformers(
        hf.MinNewTokensLengthLogitsProcessor(len(prompt), num_tokens, EOS_IDS)
    )
    ours = process_rows(
        MinNewTokens(num_tokens=num_tokens, eos_token_ids=EOS_IDS), prompt, reply, rows
    )
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


@given(prompts, tokens, seeds)
def test_forced_tokens_leave_one_choice_and_then_every_choice(
    prompt: list[int], forced: list[int], seed: int
) -> None:
    rows = random_rows(seed, len(forced) + 1)
    ours = process_rows(ForcedTokens(token_ids=forced), prompt, forced, rows)
    for row, token in zip(ours[:-1], forced, strict=True):
        assert np.flatnonzero(row > -np.inf).tolist() == [token]
    np.testing.assert_array_equal(ours[-1], rows[-1])


def test_a_forced_token_that_another_processor_forbids_is_an_error() -> None:
    running = ForcedTokens(token_ids=[4, 5]).start([])
    running.accept(4)
    with pytest.raises(ProcessorError, match="token 5 is forced at position 1"):
        running.accept(0)
