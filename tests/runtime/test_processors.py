"""The logits processors against transformers' own and against slow, obvious references."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation import logits_process as hf

from medusa_trt.errors import PromptError
from medusa_trt.runtime.processors import (
    BannedTokens,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    LogitsProcessor,
    MinNewTokens,
    PresencePenalty,
    RepetitionPenalty,
)

VOCAB = 12
EOS_IDS = [3, 7]

Logits = NDArray[np.float32]

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=20)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
seeds = st.integers(0, 2**32 - 1)
few_tokens = st.lists(st.integers(0, 2), max_size=20)
"""Of three tokens, so that words of them often occur."""
words = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8)


def random_rows(seed: int, count: int) -> Logits:
    """Logits with zeros and forbidden tokens among them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 4, (count, VOCAB)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = 0
    rows[rng.random(rows.shape) < 0.1] = -np.inf
    return rows


def processed(
    processor: LogitsProcessor, prompt: Sequence[int], reply: Sequence[int], rows: Logits
) -> Logits:
    """Every position's logits while a reply is walked."""
    running = processor.start(prompt)
    rows = rows.copy()
    for row, token in zip(rows, [*reply, None], strict=True):
        running.process(row)
        if token is not None:
            running.accept(token)
    return rows


def expected(
    reference: Callable[[list[int], list[int], Logits], Logits],
    prompt: list[int],
    reply: list[int],
    rows: Logits,
) -> Logits:
    """The same from a function of prompt, reply so far and one position's logits."""
    return np.stack([reference(prompt, reply[:n], row.copy()) for n, row in enumerate(rows)])


def from_transformers(
    processor: hf.LogitsProcessor,
) -> Callable[[list[int], list[int], Logits], Logits]:
    """A processor of transformers as a reference."""

    def call(prompt: list[int], reply: list[int], row: Logits) -> Logits:
        scores = processor(torch.tensor([prompt + reply]), torch.from_numpy(row)[None])
        found: Logits = scores[0].numpy()
        return found

    return call


@given(prompts, tokens, seeds, st.floats(0.01, 100))
def test_repetition_penalty_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, penalty: float
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = from_transformers(hf.RepetitionPenaltyLogitsProcessor(penalty))
    ours = processed(RepetitionPenalty(penalty=penalty), prompt, reply, rows)
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


@given(few_tokens.filter(bool), few_tokens, seeds, words)
def test_banned_words_equal_transformers(
    prompt: list[int], reply: list[int], seed: int, banned: list[list[int]]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = from_transformers(hf.NoBadWordsLogitsProcessor(banned))
    ours = processed(BannedTokens(sequences=banned), prompt, reply, rows)
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


@given(prompts, tokens, seeds, tokens)
def test_banned_tokens_equal_transformers(
    prompt: list[int], reply: list[int], seed: int, banned: list[int]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = from_transformers(hf.SuppressTokensLogitsProcessor(banned))
    ours = processed(BannedTokens(token_ids=banned), prompt, reply, rows)
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), min_size=1)


@given(prompts, tokens, seeds, biases)
def test_logit_bias_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, bias: dict[int, float]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = from_transformers(
        hf.SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    )
    ours = processed(LogitBias(biases=bias), prompt, reply, rows)
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


@given(prompts, tokens, seeds, st.integers(0, 25))
def test_minimum_length_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, num_tokens: int
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = from_transformers(
        hf.MinNewTokensLengthLogitsProcessor(len(prompt), num_tokens, EOS_IDS)
    )
    ours = processed(
        MinNewTokens(num_tokens=num_tokens, eos_token_ids=EOS_IDS), prompt, reply, rows
    )
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


@given(prompts, tokens, seeds, st.floats(-2, 2), st.floats(-2, 2))
def test_count_penalties_follow_the_formula_of_openai(
    prompt: list[int], reply: list[int], seed: int, presence: float, frequency: float
) -> None:
    def reference(prompt: list[int], reply: list[int], row: Logits) -> Logits:
        for token, count in Counter(reply).items():
            row[token] -= np.float32(presence)
            row[token] -= np.float32(frequency) * np.float32(count)
        return row

    rows = random_rows(seed, len(reply) + 1)
    ours = processed(PresencePenalty(penalty=presence), prompt, reply, rows)
    ours = processed(FrequencyPenalty(penalty=frequency), prompt, reply, ours)
    np.testing.assert_array_equal(ours, expected(reference, prompt, reply, rows))


@given(prompts, tokens, seeds)
def test_forced_tokens_leave_one_choice_and_then_every_choice(
    prompt: list[int], forced: list[int], seed: int
) -> None:
    rows = random_rows(seed, len(forced) + 1)
    ours = processed(ForcedTokens(token_ids=forced), prompt, forced, rows)
    for row, token in zip(ours[:-1], forced, strict=True):
        assert np.flatnonzero(row > -np.inf).tolist() == [token]
    np.testing.assert_array_equal(ours[-1], rows[-1])


def test_a_forced_token_that_another_processor_forbids_is_an_error() -> None:
    running = ForcedTokens(token_ids=[4, 5]).start([])
    running.accept(4)
    with pytest.raises(PromptError, match="token 5 is forced at position 1"):
        running.accept(0)


EVERY: list[LogitsProcessor] = [
    RepetitionPenalty(penalty=1.3),
    PresencePenalty(penalty=0.5),
    FrequencyPenalty(penalty=-0.5),
    LogitBias(biases={2: 5.0, 4: -1.5}),
    BannedTokens(token_ids=[1], sequences=[[2, 3], [4, 4, 5], [6]]),
    ForcedTokens(token_ids=[8, 9]),
    MinNewTokens(num_tokens=3, eos_token_ids=EOS_IDS),
]


@pytest.mark.parametrize("processor", EVERY, ids=lambda value: type(value).__name__)
def test_one_description_serves_many_replies(processor: LogitsProcessor) -> None:
    reply = [8, 9, 4, 4]
    rows = random_rows(0, len(reply) + 1)
    alone = processed(processor, [2, 2], reply, rows)
    first, second = processor.start([2, 2]), processor.start([2, 2])
    for row, token, wanted in zip(rows, [*reply, 0], alone, strict=True):
        row_of_first, row_of_second = row.copy(), row.copy()
        first.process(row_of_first)
        first.accept(token)
        second.process(row_of_second)
        second.accept(token)
        np.testing.assert_array_equal(row_of_first, wanted)
        np.testing.assert_array_equal(row_of_second, wanted)
    np.testing.assert_array_equal(processed(processor, [2, 2], reply, rows), alone)


def test_a_description_does_not_change_with_its_arguments() -> None:
    bias, banned, sequences = {1: 2.0}, [1], [[1, 2]]
    processor = LogitBias(biases=bias)
    words = BannedTokens(token_ids=banned, sequences=sequences)
    bias[2] = 9.0
    banned.append(5)
    sequences[0].append(3)
    assert dict(processor.biases) == {1: 2.0}
    assert words == BannedTokens(token_ids=(1,), sequences=((1, 2),))


def test_long_texts_keep_every_count() -> None:
    reply = list(range(500)) * 2
    running = FrequencyPenalty(penalty=1.0).start([])
    for token in reply:
        running.accept(token)
    row = np.zeros(600, np.float32)
    running.process(row)
    np.testing.assert_array_equal(row, [-2.0] * 500 + [0.0] * 100)


@pytest.mark.parametrize("processor", EVERY, ids=lambda value: type(value).__name__)
def test_processing_allocates_nothing_of_the_vocabularys_size(processor: LogitsProcessor) -> None:
    row = np.zeros(1_000_000, np.float32)
    running = processor.start([2, 2, 3])
    running.process(row)
    tracemalloc.start()
    running.process(row)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepetitionPenalty(penalty=0.0), "repetition penalty is 0.0"),
        (lambda: RepetitionPenalty(penalty=-1.0), "repetition penalty is -1.0"),
        (lambda: RepetitionPenalty(penalty=float("nan")), "repetition penalty is nan"),
        (lambda: RepetitionPenalty(penalty=float("inf")), "repetition penalty is inf"),
        (lambda: PresencePenalty(penalty=2.1), "presence penalty is 2.1: it must be from -2 to 2"),
        (lambda: FrequencyPenalty(penalty=float("nan")), "frequency penalty is nan"),
        (lambda: LogitBias(biases={3: float("-inf")}), "logit bias of token 3 is -inf"),
        (lambda: LogitBias(biases={-3: 1.0}), "the logit bias holds -3"),
        (lambda: BannedTokens(token_ids=[-1]), "banned tokens holds -1"),
        (lambda: BannedTokens(sequences=[[1], []]), "banned tokens holds an empty sequence"),
        (lambda: BannedTokens(sequences=[[1, -2]]), "banned tokens holds -2"),
        (lambda: ForcedTokens(token_ids=[0.5]), "forced reply holds 0.5"),  # type: ignore[list-item]
        (lambda: MinNewTokens(num_tokens=-1, eos_token_ids=[1]), "min_new_tokens is -1"),
        (lambda: MinNewTokens(num_tokens=1, eos_token_ids=[-1]), "end tokens holds -1"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], LogitsProcessor], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make()


@pytest.mark.parametrize(
    "processor",
    [
        LogitBias(biases={VOCAB: 1.0}),
        BannedTokens(token_ids=[VOCAB]),
        BannedTokens(sequences=[[1, VOCAB]]),
        BannedTokens(sequences=[[VOCAB, 1]]),
        ForcedTokens(token_ids=[1, VOCAB]),
        MinNewTokens(num_tokens=0, eos_token_ids=[VOCAB]),
    ],
)
def test_a_token_beyond_the_vocabulary_is_an_error(processor: LogitsProcessor) -> None:
    running = processor.start([1])
    with pytest.raises(PromptError, match="token 12, the model's tokens end at 11"):
        running.process(np.zeros(VOCAB, np.float32))
    running.process(np.zeros(VOCAB + 1, np.float32))
