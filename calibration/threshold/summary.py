"""Accepted length and quality of typical acceptance against the sampler: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medusa_trt.calibration.calibrate_options import ThresholdOptions
from medusa_trt.calibration.intervals import NUM_RESAMPLES, Interval
from medusa_trt.calibration.threshold.measurement import Rule, ThresholdRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSummary:
    """Replies by one rule.

    Attributes:
        rule: the rule; its ε is None for the sampler.
        num_replies: replies.
        accept_length: tokens a step.
        mean_logprob: nats a token under the model itself at temperature 1.
        logprob_gain: `mean_logprob` less the sampler's at this temperature, on the same prompts,
            with its 95 % interval.
        distinct: for n = 1, 2, 3 the share of n-grams within a reply that are not repeated (Li et
            al. 2016), on average over replies.
        token_agreement: share of tokens that the sampler draws, with the same random numbers and
            after the same tokens; 1 for the sampler itself.
    """

    rule: Rule
    num_replies: int
    accept_length: float
    mean_logprob: float
    logprob_gain: Interval
    distinct: tuple[float, float, float]
    token_agreement: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use at a temperature: an ε with its δ, or the lossless sampler if that is None."""

    rule: Rule
    reason: str


def distinct_n(token_ids: Sequence[int], n: int) -> float | None:
    """Different n-grams over all n-grams of a reply; None where it has none."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def summarize_rules(
    records: Sequence[ThresholdRecord], rules: Sequence[Rule]
) -> tuple[RuleSummary, ...]:
    """A summary of each rule that has replies, over prompts that all rules have answered."""
    by_rule = {rule: {r.prompt_id: r for r in records if r.rule == rule} for rule in rules}
    common = set.intersection(*(set(own) for own in by_rule.values())) if by_rule else set()
    prompts = sorted(common)
    if not prompts:
        return ()
    return tuple(
        _rule_summary(
            rule,
            [by_rule[rule][prompt] for prompt in prompts],
            [by_rule[Rule(temperature=rule.temperature)][prompt] for prompt in prompts],
        )
        for rule in rules
    )


def recommend(
    summaries: Sequence[RuleSummary], options: ThresholdOptions
) -> tuple[Recommendation, ...]:
    """For each temperature the threshold that accepts most of those that keep the quality.

    A threshold keeps it if its replies are at most `quality_loss` nats a token less likely than the
    sampler's, and at most `diversity_loss` less distinct (distinct-2). One that accepts no more
    than the sampler is not worth its other distribution.
    """
    found = []
    for temperature in dict.fromkeys(summary.rule.temperature for summary in summaries):
        own = [summary for summary in summaries if summary.rule.temperature == temperature]
        sampler = next(summary for summary in own if summary.rule.posterior_threshold is None)
        keeping = [
            summary
            for summary in own
            if summary is not sampler
            and summary.logprob_gain.median >= -options.quality_loss
            and summary.distinct[1] >= sampler.distinct[1] - options.diversity_loss
        ]
        best = max(keeping, key=lambda summary: summary.accept_length, default=None)
        if best is None:
            reason = "no threshold keeps likelihood and diversity"
            found.append(Recommendation(sampler.rule, reason))
        elif best.accept_length <= sampler.accept_length:
            reason = "the sampler accepts as much, and keeps the distribution"
            found.append(Recommendation(sampler.rule, reason))
        else:
            reason = (
                f"{best.accept_length:.2f} tokens a step, the sampler {sampler.accept_length:.2f}"
            )
            found.append(Recommendation(best.rule, reason))
    return tuple(found)


def _rule_summary(
    rule: Rule, replies: Sequence[ThresholdRecord], sampled: Sequence[ThresholdRecord]
) -> RuleSummary:
    num_tokens = sum(len(reply.token_ids) for reply in replies)
    num_steps = sum(reply.num_steps for reply in replies)
    own, others = _sums(replies), _sums(sampled)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(
        len(replies), np.full(len(replies), 1 / len(replies)), NUM_RESAMPLES
    ).astype(np.float64)
    return RuleSummary(
        rule=rule,
        num_replies=len(replies),
        accept_length=(num_tokens - len(replies)) / max(1, num_steps),
        mean_logprob=_ratio(own.sum(axis=0)),
        logprob_gain=Interval.from_bootstrap(
            _ratio(own.sum(axis=0)) - _ratio(others.sum(axis=0)),
            np.array([_ratio(row) for row in drawn @ own])
            - np.array([_ratio(row) for row in drawn @ others]),
        ),
        distinct=(_distinct(replies, 1), _distinct(replies, 2), _distinct(replies, 3)),
        token_agreement=sum(reply.num_agreeing for reply in replies) / num_tokens,
    )


def _sums(replies: Sequence[ThresholdRecord]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(R, 2) log-likelihood and tokens of each reply."""
    return np.array([[reply.sum_logprob, len(reply.token_ids)] for reply in replies], np.float64)


def _ratio(sums: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(sums[0] / sums[1])


def _distinct(replies: Sequence[ThresholdRecord], n: int) -> float:
    values = [distinct_n(reply.token_ids, n) for reply in replies]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0
