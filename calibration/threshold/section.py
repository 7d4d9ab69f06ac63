"""The report's section on typical acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_trt.calibration.options import ReplySettings, ThresholdOptions
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.threshold.measurement import Rule, ThresholdRecord
from medusa_trt.calibration.threshold.summary import (
    Recommendation,
    RuleSummary,
    recommend,
    summarize_rules,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSection:
    """Typical acceptance against the sampler."""

    origin: Origin
    settings: ReplySettings
    tree: str
    num_prompts: int
    rules: tuple[RuleSummary, ...]
    recommendations: tuple[Recommendation, ...]

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
