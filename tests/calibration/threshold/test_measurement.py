"""Scores of replies under the model."""

import pytest

from medusa_trt.calibration.threshold.measurement import score_reply
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession


def test_scores_are_those_of_the_session(tiny_bundle: Bundle) -> None:
    sampling = SamplingOptions(temperature=0.8, seed=5)
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        prompt = session.encode("hello there")
        sampled = session.generate(
            prompt, GenerationOptions(max_new_tokens=30, sampling=sampling, logprobs=0)
        )
        total, num_agreeing = score_reply(session, prompt, sampled.token_ids, sampling)
        assert total == pytest.approx(sum(p.logprob for p in sampled.logprobs), abs=1e-3)
        assert num_agreeing == len(sampled.token_ids)
        greedy = session.generate(prompt, GenerationOptions(max_new_tokens=30)).token_ids
        assert score_reply(session, prompt, greedy, sampling)[1] < len(greedy)
