"""Prompt lookup against a search from the end, and decoding with it against plain decoding."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medusa_trt.errors import PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.drafting import TokenLookup
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.processors.penalties import LogitBias
from medusa_trt.runtime.session import GenerationOptions, MedusaSession, SamplingOptions
from medusa_trt.tree_configs import load_tree

REPEATING = [5, 6, 7, 8] * 6


def continuation_slowly(tokens: Sequence[int], ngram: int, length: int) -> list[int] | None:
    """Looks at every earlier place, the latest first; past the end it reads its own result."""
    for start in reversed(range(len(tokens) - ngram)):
        if tokens[start : start + ngram] == tokens[-ngram:]:
            extended = list(tokens)
            for place in range(length):
                extended.append(extended[start + ngram + place])
            return extended[len(tokens) :]
    return None


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1), st.integers(1, 4))
def test_a_continuation_is_that_of_the_latest_earlier_place(
    pieces: list[list[int]], ngram: int
) -> None:
    lookup, tokens = TokenLookup(pieces[0], ngram), list(pieces[0])
    for piece in pieces[1:]:
        lookup.add(piece)
        tokens += piece
    for length in (1, 3, 9):
        assert lookup.find_continuation(length) == continuation_slowly(tokens, ngram, length)


def test_a_repetition_goes_on_with_its_period() -> None:
    assert TokenLookup([7, 1, 2, 3, 1, 2, 3, 1], 3).find_continuation(7) == [2, 3, 1, 2, 3, 1, 2]
    assert TokenLookup([7, 1, 2, 3], 3).find_continuation(7) is None


class CountingEngine(OrtEngine):
    """Counts how often the heads are asked."""

    num_drafts = 0

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> NDArray[np.int64]:
        self.num_drafts += 1
        return super().draft(hidden, root_ids)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(),
        GenerationOptions(processors=(LogitBias(biases={3: 1.0}),)),
        GenerationOptions(sampling=SamplingOptions(temperature=0.2, seed=5)),
    ],
    ids=["greedy", "processors", "sample"],
)
def test_copied_drafts_change_no_token(tiny_bundle: Bundle, options: GenerationOptions) -> None:
    engine = CountingEngine(tiny_bundle, batch_size=2, num_threads=1)
    options = replace(options, max_new_tokens=40, ignore_eos=True, tree=load_tree("chain-3"))
    with MedusaSession(tiny_bundle, engine=engine) as session:
        plain = session.generate(REPEATING, replace(options, tree=load_tree("plain")))
        alone = session.generate(REPEATING, replace(options, lookup_ngram=0))
        num_alone, engine.num_drafts = engine.num_drafts, 0
        copied = session.generate(REPEATING, replace(options, lookup_ngram=2))
        assert plain.token_ids == alone.token_ids == copied.token_ids
        assert num_alone == len(alone.stats.accept_lengths)
        assert engine.num_drafts < len(copied.stats.accept_lengths)
        prompts = [REPEATING, REPEATING[3:], [5, 9]]
        batches = [
            session.generate_batch(prompts, replace(options, lookup_ngram=ngram))
            for ngram in (0, 2)
        ]
        assert [r.token_ids for r in batches[0]] == [r.token_ids for r in batches[1]]


def test_an_ngram_out_of_range_is_refused() -> None:
    for ngram in (-1, 17):
        with pytest.raises(PromptError, match=f"lookup_ngram is {ngram}"):
            GenerationOptions(lookup_ngram=ngram)
