"""Figures and recommendations of thresholds."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.calibration.options import ReplySettings, ThresholdOptions
from medusa_trt.calibration.threshold.measurement import Rule, ThresholdRecord
from medusa_trt.calibration.threshold.summary import compute_distinct_n, recommend, summarize_rules

SETTINGS = ReplySettings(prompts="test", prompts_sha256="", max_new_tokens=24)


def threshold_record(
    threshold: float | None, prompt: str, tokens: list[int], steps: int, logprob: float
) -> ThresholdRecord:
    alpha = None if threshold is None else threshold**0.5
    return ThresholdRecord(
        settings=SETTINGS,
        rule=Rule(temperature=0.7, posterior_threshold=threshold, posterior_alpha=alpha),
        tree=((0,),),
        prompt_id=prompt,
        token_ids=tokens,
        num_steps=steps,
        sum_logprob=logprob,
        num_agreeing=2,
    )


def test_threshold_summaries_and_recommendation() -> None:
    tokens, dull = [1, 2, 3, 4, 5], [1, 1, 1, 1, 1]
    records = [
        threshold_record(None, "a", tokens, 4, -5.0),
        threshold_record(None, "b", tokens, 4, -10.0),
        threshold_record(0.1, "a", tokens, 2, -5.0),
        threshold_record(0.1, "b", tokens, 2, -10.0),
        threshold_record(0.01, "a", tokens, 1, -8.0),
        threshold_record(0.01, "b", tokens, 1, -14.0),
        threshold_record(0.2, "a", dull, 1, -1.0),
        threshold_record(0.2, "b", dull, 1, -1.0),
        threshold_record(0.1, "c", tokens, 2, -99.0),  # not answered by every rule
    ]
    rules = list(dict.fromkeys(record.rule for record in records))
    sampler, kept, unlikely, repeated = summarize_rules(records, rules)
    assert (sampler.accept_length, kept.accept_length) == (1.0, 2.0)
    assert sampler.mean_logprob == kept.mean_logprob == -1.5
    assert kept.logprob_gain.median == 0 and unlikely.logprob_gain.median == pytest.approx(-0.7)
    assert unlikely.logprob_gain.low < -0.7 < unlikely.logprob_gain.high
    assert list(repeated.distinct) == pytest.approx([0.2, 0.25, 1 / 3])
    assert kept.token_agreement == 0.4
    (advice,) = recommend((sampler, kept, unlikely, repeated), ThresholdOptions())
    assert advice.rule.posterior_threshold == 0.1
    (advice,) = recommend((sampler, unlikely, repeated), ThresholdOptions())
    assert advice.rule == sampler.rule and "no threshold" in advice.reason
    slow = dataclasses.replace(kept, accept_length=1.0)
    (advice,) = recommend((sampler, slow), ThresholdOptions())
    assert advice.rule == sampler.rule and "as much" in advice.reason
    assert summarize_rules(records[:1], rules) == ()


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_distinct_n(token_ids: list[int], n: int) -> None:
    grams = [token_ids[i : i + n] for i in range(len(token_ids)) if i + n <= len(token_ids)]
    unique: list[list[int]] = []
    for gram in grams:
        if gram not in unique:
            unique.append(gram)
    assert compute_distinct_n(token_ids, n) == (len(unique) / len(grams) if grams else None)
