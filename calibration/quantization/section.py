"""What is known of a model's quantization, for the report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PLAN = "plan"
UNQUANTIZED = "unquantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCost:
    """A format of one site, all others being as they are.

    Attributes:
        format: the format.
        size_bytes: of the site's matrices with their scales.
        kl: KL divergence from the unquantized model, nats a token, estimated.
    """

    format: str
    size_bytes: int
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCosts:
    """A site (`export/quantization/sites.py`) in each format that rounds, and the plan's format."""

    name: str
    layer: int | None
    kind: str
    num_weights: int
    costs: tuple[FormatCost, ...]
    chosen: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """All sites rounded at once.

    Attributes:
        name: what the report calls it.
        counts: number of sites of each format.
        size_bytes: of all matrices with their scales.
        predicted_kl: the sum of what the sites cause alone.
        kl: as measured, nats a token.
        agreement: share of next tokens that stay the same.
        accept_length: tokens a step that the bundle's heads and tree add on the replies.
    """

    name: str
    counts: dict[str, int]
    size_bytes: int
    predicted_kl: float
    kl: float
    agreement: float
    accept_length: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The least KL divergence that is predicted for a size."""

    size_bytes: int
    predicted_kl: float


def counts_text(counts: Mapping[str, int]) -> str:
    """As in "83 int4, 38 int8"."""
    return ", ".join(f"{count} {format_}" for format_, count in sorted(counts.items()))


def advice_text(plans: Iterable[PlanResult]) -> str:
    """What the plan gives, next to the largest of the others that rounds."""
    by_name = {plan.name: plan for plan in plans}
    if PLAN not in by_name:
        return "Interrupted before a plan was found: run the same command again to go on."
    plan = by_name.pop(PLAN)
    by_name.pop(UNQUANTIZED, None)
    text = (
        f"The plan ({counts_text(plan.counts)}) takes {plan.size_bytes / 1e6:.1f} MB at a KL "
        f"divergence of {plan.kl:.4f} nats a token; {plan.agreement:.1%} of the next tokens stay "
        f"the same, and a step adds {plan.accept_length:.2f} tokens."
    )
    for other in by_name.values():
        text += (
            f" {other.name}: {other.size_bytes / 1e6:.1f} MB, {other.kl:.4f} nats, "
            f"{other.agreement:.1%}, {other.accept_length:.2f}."
        )
    return text
