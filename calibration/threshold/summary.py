"""Compares acceptance length and quality of typical acceptance with the sampler's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medusa_trt.calibration.intervals import NUM_RESAMPLES, Interval
from medusa_trt.calibration.options import ReplySettings, ThresholdOptions
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.threshold.measurement import Rule, ThresholdRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSummary:
    """Figures of the replies by one rule.

    Attributes:
        rule: the rule; its ε is None for the sampler.
        num_replies: number of replies.
        accept_length: tokens per step.
        mean_logprob: log-likelihood under the model at temperature 1, nats per token.
        logprob_gain: `mean_logprob` minus the sampler's at this temperature, on the same prompts,
            with its 95 % interval.
        distinct: for n = 1, 2, 3 the number of different n-grams of a reply over the number of all
            its n-grams (Li et al. 2016), as the mean over replies.
        token_agreement: share of tokens that the sampler draws too, with the same random numbers
            and after the same tokens; 1 for the sampler itself.
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
    """The recommended rule at a temperature, and the reason in words."""

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSection:
    """Typical acceptance against the sampler; `written` is whether the bundle has the advice."""

    origin: Origin
    settings: ReplySettings
    tree: str
    num_prompts: int
    rules: tuple[RuleSummary, ...]
    recommendations: tuple[Recommendation, ...]
    written: bool = False

    @classmethod
    def from_records(
        cls,
        tree: str,
        records: Sequence[ThresholdRecord],
        rules: Sequence[Rule],
        settings: ReplySettings,
        options: ThresholdOptions,
        origin: Origin,
    ) -> "ThresholdSection":
        """Summarizes replies that were drafted by one tree with these settings."""
        summaries = summarize_rules(records, rules)
        return cls(
            origin=origin,
            settings=settings,
            tree=tree,
            num_prompts=summaries[0].num_replies if summaries else 0,
            rules=summaries,
            recommendations=recommend(summaries, options),
        )


def compute_distinct_n(token_ids: Sequence[int], n: int) -> float | None:
    """Number of different n-grams over the number of all n-grams; None if there are none."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def summarize_rules(
    records: Sequence[ThresholdRecord], rules: Sequence[Rule]
) -> tuple[RuleSummary, ...]:
    """Summarizes each rule over the prompts to which every rule has a reply."""
    by_rule = {rule: {r.prompt_id: r for r in records if r.rule == rule} for rule in rules}
    prompts = sorted(set.intersection(*map(set, by_rule.values()))) if by_rule else []
    if not prompts:
        return ()
    return tuple(
        _summarize_rule(
            rule,
            [by_rule[rule][prompt] for prompt in prompts],
            [by_rule[Rule(temperature=rule.temperature)][prompt] for prompt in prompts],
        )
        for rule in rules
    )


def recommend(
    summaries: Sequence[RuleSummary], options: ThresholdOptions
) -> tuple[Recommendation, ...]:
    """Recommends for each temperature the threshold with the longest acceptance at good quality.

    The quality is good if the replies' log-likelihood per token is at most `quality_loss` nats
    below the sampler's, and their distinct-2 at most `diversity_loss` below it. If no such
    threshold accepts more than the sampler, the sampler is recommended, since it keeps the
    distribution.
    """
    recommendations = []
    for temperature in dict.fromkeys(summary.rule.temperature for summary in summaries):
        group = [summary for summary in summaries if summary.rule.temperature == temperature]
        sampler = next(summary for summary in group if summary.rule.posterior_threshold is None)
        good = [
            summary
            for summary in group
            if summary is not sampler
            and summary.logprob_gain.median >= -options.quality_loss
            and summary.distinct[1] >= sampler.distinct[1] - options.diversity_loss
        ]
        best = max(good, key=lambda summary: summary.accept_length, default=None)
        if best is None:
            reason = "no threshold keeps likelihood and diversity"
            recommendations.append(Recommendation(sampler.rule, reason))
        elif best.accept_length <= sampler.accept_length:
            reason = "the sampler accepts as much, and keeps the distribution"
            recommendations.append(Recommendation(sampler.rule, reason))
        else:
            reason = (
                f"{best.accept_length:.2f} tokens per step, the sampler {sampler.accept_length:.2f}"
            )
            recommendations.append(Recommendation(best.rule, reason))
    return tuple(recommendations)


def _summarize_rule(
    rule: Rule, replies: Sequence[ThresholdRecord], sampled: Sequence[ThresholdRecord]
) -> RuleSummary:
    num_tokens = sum(len(reply.token_ids) for reply in replies)
    num_steps = sum(reply.num_steps for reply in replies)
    sums, sampled_sums = _sums(replies), _sums(sampled)
    rng = np.random.default_rng(0)
    resamples = rng.multinomial(
        len(replies), np.full(len(replies), 1 / len(replies)), NUM_RESAMPLES
    ).astype(np.float64)
    return RuleSummary(
        rule=rule,
        num_replies=len(replies),
        accept_length=(num_tokens - len(replies)) / max(1, num_steps),
        mean_logprob=_ratio(sums.sum(axis=0)),
        logprob_gain=Interval.from_bootstrap(
            _ratio(sums.sum(axis=0)) - _ratio(sampled_sums.sum(axis=0)),
            np.array([_ratio(row) for row in resamples @ sums])
            - np.array([_ratio(row) for row in resamples @ sampled_sums]),
        ),
        distinct=(_distinct(replies, 1), _distinct(replies, 2), _distinct(replies, 3)),
        token_agreement=sum(reply.num_agreeing for reply in replies) / num_tokens,
    )


def _sums(replies: Sequence[ThresholdRecord]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Log-likelihood and number of tokens of each reply, (R, 2)."""
    return np.array([[reply.sum_logprob, len(reply.token_ids)] for reply in replies], np.float64)


def _ratio(sums: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(sums[0] / sums[1])


def _distinct(replies: Sequence[ThresholdRecord], n: int) -> float:
    values = [compute_distinct_n(reply.token_ids, n) for reply in replies]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else 0.0
