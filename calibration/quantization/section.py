"""The report's section on a model's quantization."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medusa_trt.calibration.options import QuantizationOptions, ReplySettings
from medusa_trt.calibration.origin import Origin

QUANTIZATION_PLAN_FILE = "quantization.json"
MODELOPT_FILE = "modelopt.json"

PLAN = "plan"
COMPENSATED = "plan, compensated"
UNQUANTIZED = "unquantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCost:
    """Cost of rounding one site to a format, all other sites being unquantized.

    Attributes:
        format: name of the format.
        size_bytes: size of the site's matrices with their scales.
        kl: estimated KL divergence from the unquantized model, nats per token.
    """

    format: str
    size_bytes: int
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCosts:
    """Costs of a site (`export/quantization/sites.py`), and the format that the plan chose."""

    name: str
    layer: int | None
    kind: str
    num_weights: int
    costs: tuple[FormatCost, ...]
    chosen: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """Cost of rounding all sites at once.

    Attributes:
        name: name of the plan in the report.
        counts: number of sites of each format.
        size_bytes: size of all matrices with their scales.
        predicted_kl: sum of the KL divergences that the sites cause alone; None where these
            were not estimated, or the rounding is compensated.
        kl: measured KL divergence, nats per token.
        agreement: share of next tokens that stay the same.
        accept_length: tokens per step that the bundle's heads and tree add on the replies.
    """

    name: str
    counts: dict[str, int]
    size_bytes: int
    predicted_kl: float | None
    kl: float
    agreement: float
    accept_length: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The least KL divergence that is predicted for a total size."""

    size_bytes: int
    predicted_kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSection:
    """Formats of the model's matrices.

    Attributes:
        origin: see `Origin`.
        settings: how the replies were generated on which the models are compared.
        options: the budget.
        model: name of the unquantized model.
        target: name of the target that the plan is for.
        num_replies: number of replies.
        num_positions: number of their tokens, each of which is predicted.
        sites: costs of each site alone, in the model's order.
        frontier: the least predicted KL of some sizes; empty until all sites are measured.
        plans: costs of all sites at once; empty until then.
        advice: the result in words.
    """

    origin: Origin
    settings: ReplySettings
    options: QuantizationOptions
    model: str
    target: str
    num_replies: int
    num_positions: int
    sites: tuple[SiteCosts, ...]
    frontier: tuple[FrontierPoint, ...]
    plans: tuple[PlanResult, ...]
    advice: str


def text_from_counts(counts: Mapping[str, int]) -> str:
    """Formats the number of sites of each format: "83 int4, 38 int8"."""
    return ", ".join(f"{count} {format_}" for format_, count in sorted(counts.items()))


def advice_from_plans(plans: Iterable[PlanResult]) -> str:
    """Compares the plan with the other plans in words."""
    by_name = {plan.name: plan for plan in plans}
    if PLAN not in by_name:
        return "Interrupted before a plan was found: run the same command again to go on."
    plan = by_name.pop(PLAN)
    by_name.pop(UNQUANTIZED, None)
    text = (
        f"The plan ({text_from_counts(plan.counts)}) takes {plan.size_bytes / 1e6:.1f} MB at a KL "
        f"divergence of {plan.kl:.4f} nats per token; {plan.agreement:.1%} of the next tokens stay "
        f"the same, and a step adds {plan.accept_length:.2f} tokens."
    )
    for other in by_name.values():
        text += (
            f" {other.name}: {other.size_bytes / 1e6:.1f} MB, {other.kl:.4f} nats, "
            f"{other.agreement:.1%}, {other.accept_length:.2f}."
        )
    return text
