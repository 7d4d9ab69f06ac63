"""The penalties against those of transformers and against slow, obvious references."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.processor_rows import (
    VOCAB,
    Logits,
    process_rows,
    prompts,
    random_rows,
    reference_from_transformers,
    reference_rows,
    seeds,
    tokens,
)
from transformers.generation import logits_process as hf

from medusa_trt.runtime.processors.penalties import (
    CountPenalty,
    LogitBias,
    RepetitionPenalty,
)


@given(prompts, tokens, seeds, st.floats(0.01, 100))
def test_repetition_penalty_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, penalty: float
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = reference_from_transformers(hf.RepetitionPenaltyLogitsProcessor(penalty))
    ours = process_rows(RepetitionPenalty(penalty=penalty), prompt, reply, rows)
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), min_size=1)


@given(prompts, tokens, seeds, biases)
def test_logit_bias_equals_transformers(
    prompt: list[int], reply: list[int], seed: int, bias: dict[int, float]
) -> None:
    rows = random_rows(seed, len(reply) + 1)
    reference = reference_from_transformers(
        hf.SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    )
    ours = process_rows(LogitBias(biases=bias), prompt, reply, rows)
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


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
    penalty = CountPenalty(presence=presence, frequency=frequency)
    ours = process_rows(penalty, prompt, reply, rows)
    np.testing.assert_array_equal(ours, reference_rows(reference, prompt, reply, rows))


def test_long_texts_keep_every_count() -> None:
    reply = list(range(500)) * 2
    running = CountPenalty(frequency=1.0).start([])
    for token in reply:
        running.accept(token)
    row = np.zeros(600, np.float32)
    running.process(row)
    np.testing.assert_array_equal(row, [-2.0] * 500 + [0.0] * 100)
