"""The choice of a reply's tokens from what the engine reduced."""

from typing import Literal

import numpy as np
import pytest

from medusa_trt.runtime.decoding.choosing import Chooser
from medusa_trt.runtime.engines.base import Reductions
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.tree_configs import chain_tree


@pytest.mark.parametrize(("rule", "bonus_token"), [("typical", 12), ("sample", 22)])
def test_the_bonus_token_is_greedy_by_typical_acceptance_and_drawn_by_sampling(
    rule: Literal["typical", "sample"], bonus_token: int
) -> None:
    options = GenerationOptions(
        sampling=SamplingOptions(temperature=1),
        acceptance=rule,
        posterior_threshold=0.09,
        posterior_alpha=0.3,
    )
    reductions = Reductions(
        sampled=np.array([[0] * 3, [5, 6, 22]]),
        entropy=np.zeros((2, 3), np.float32),
        candidate_logprob=np.array([[-50] * 3, [0, 0, 0]], np.float32),
    )
    chooser = Chooser(options, [1], 8)
    accepted = chooser.accept(chain_tree(2), [4, 5, 6], [10, 11, 12], reductions, 1)
    assert accepted == ([0, 1, 2], bonus_token)


def test_a_vocabulary_may_have_fewer_tokens_than_logprobs_are_asked_for() -> None:
    chooser = Chooser(GenerationOptions(logprobs=9), [1], 8)
    logits = np.array([[0, 2, 1], [0, 0, 0]], np.float32)
    nodes, bonus_token, logprobs = chooser.walk(chain_tree(1), [0, 2], 0, logits)
    assert (nodes, bonus_token) == ([0], 1)
    assert [token for token, _ in logprobs[0].top] == [1, 2, 0]
