"""Prompt lookup in a session: copied drafts change no token."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Drafts
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.processors.penalties import LogitBias
from medusa_trt.runtime.session import GenerationOptions, MedusaSession, SamplingOptions
from medusa_trt.tree_configs import load_tree

REPEATING = [5, 6, 7, 8] * 6


class CountingEngine(OrtEngine):
    """Counts how often the heads run."""

    num_drafts = 0

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
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
        without_lookup, with_lookup = (
            session.generate_batch(prompts, replace(options, lookup_ngram=ngram))
            for ngram in (0, 2)
        )
        for left, right in zip(without_lookup, with_lookup, strict=True):
            assert left.token_ids == right.token_ids
