"""What holds for every logits processor."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from support.processor_rows import (
    EOS_IDS,
    VOCAB,
    process_rows,
    random_rows,
)

from medusa_trt.errors import ProcessorError, PromptError
from medusa_trt.runtime.processors.base import LogitsProcessor
from medusa_trt.runtime.processors.penalties import (
    CountPenalty,
    LogitBias,
    RepetitionPenalty,
)
from medusa_trt.runtime.processors.restrictions import BannedTokens, ForcedTokens, MinNewTokens

EVERY: list[LogitsProcessor] = [
    RepetitionPenalty(penalty=1.3),
    CountPenalty(presence=0.5, frequency=-0.5),
    LogitBias(biases={2: 5.0, 4: -1.5}),
    BannedTokens(token_ids=[1], sequences=[[2, 3], [4, 4, 5], [6]]),
    ForcedTokens(token_ids=[8, 9]),
    MinNewTokens(num_tokens=3, eos_token_ids=EOS_IDS),
]


@pytest.mark.parametrize("processor", EVERY, ids=lambda value: type(value).__name__)
def test_one_description_serves_many_replies(processor: LogitsProcessor) -> None:
    reply = [8, 9, 4, 4]
    rows = random_rows(0, len(reply) + 1)
    alone = process_rows(processor, [2, 2], reply, rows)
    first, second = processor.start([2, 2]), processor.start([2, 2])
    for row, token, wanted in zip(rows, [*reply, 0], alone, strict=True):
        row_of_first, row_of_second = row.copy(), row.copy()
        first.process(row_of_first)
        first.accept(token)
        second.process(row_of_second)
        second.accept(token)
        np.testing.assert_array_equal(row_of_first, wanted)
        np.testing.assert_array_equal(row_of_second, wanted)
    np.testing.assert_array_equal(process_rows(processor, [2, 2], reply, rows), alone)


def test_a_description_does_not_change_with_its_arguments() -> None:
    bias, banned, sequences = {1: 2.0}, [1], [[1, 2]]
    processor = LogitBias(biases=bias)
    words = BannedTokens(token_ids=banned, sequences=sequences)
    bias[2] = 9.0
    banned.append(5)
    sequences[0].append(3)
    assert dict(processor.biases) == {1: 2.0}
    assert words == BannedTokens(token_ids=(1,), sequences=((1, 2),))


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
        (lambda: RepetitionPenalty(penalty=0.0), "penalty is 0.0"),
        (lambda: RepetitionPenalty(penalty=-1.0), "penalty is -1.0"),
        (lambda: RepetitionPenalty(penalty=float("nan")), "penalty is nan"),
        (lambda: RepetitionPenalty(penalty=float("inf")), "penalty is inf"),
        (lambda: CountPenalty(presence=2.1), "presence is 2.1: it must be between -2 and 2"),
        (lambda: CountPenalty(frequency=float("nan")), "frequency is nan"),
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
    with pytest.raises(ProcessorError, match="token 12, the model's tokens end at 11"):
        running.process(np.zeros(VOCAB, np.float32))
    running.process(np.zeros(VOCAB + 1, np.float32))
