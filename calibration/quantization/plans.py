"""Makes quantization plans: some fixed ones to compare with, and the best one for a budget.

A plan gives each site, a group of matrices, the format that its weights are stored in.
"""

from collections.abc import Callable, Sequence

from medusa_trt.calibration.options import QuantizationOptions
from medusa_trt.calibration.quantization.frontier import Frontier
from medusa_trt.calibration.quantization.meter import Formats
from medusa_trt.calibration.quantization.section import UNQUANTIZED
from medusa_trt.errors import CalibrationError
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.targets import Target
from medusa_trt.export.weight_formats import Format, is_rounded

MAX_TRIES = 6
"""Largest number of plans that are measured to find the smallest one within a KL divergence."""

_MIN_KL = 1e-9
"""Smallest divisor, where the KL divergence of a plan is 0."""

_MARGIN = 0.98
"""Factor on a bound that is lowered, so that the next plan is a little below the budget."""


def formats_from_names(target: Target, names: Sequence[str] | None) -> tuple[Format, ...]:
    """Returns the formats to choose from: the named ones, or the target's candidates for None.

    Raises:
        CalibrationError: the target lacks one of them, or all of them are floating point.
    """
    if names is None:
        return target.candidates
    if unknown := [name for name in names if name not in target.formats]:
        raise CalibrationError(
            f"target {target.name} has no format {unknown[0]!r}: choose from "
            f"{', '.join(target.formats)}"
        )
    formats = tuple(format_ for format_ in target.formats if format_ in names)
    if not any(map(is_rounded, formats)):
        raise CalibrationError(
            f"--formats is {','.join(names)}: name a format that rounds weights, such as int8"
        )
    return formats


def count_site_bytes(site: Site, rounding: Rounding, format_: Format) -> int | None:
    """Bytes of a site's matrices; None if one of them cannot have this format."""
    total = 0
    for shape in site.shapes:
        size = rounding.count_bytes(*shape, format_)
        if size is None:
            return None
        total += size
    return total


def count_plan_bytes(sites: Sequence[Site], rounding: Rounding, formats: Formats) -> int:
    """Bytes of all matrices in a plan."""
    return sum(count_site_bytes(site, rounding, formats[site.name]) or 0 for site in sites)


def make_fixed_plans(
    sites: Sequence[Site], target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[str, dict[str, Format]]:
    """Makes the plans to compare with.

    They are the unrounded model, each precision of the target, and each format for all sites. A
    site that cannot have a format stays unrounded. Of equal plans only the first one is kept.
    """
    unrounded = target.formats[-1]

    def plan(layers: Format, unembedding: Format) -> dict[str, Format]:
        by_site = {site: unembedding if site.is_last else layers for site in sites}
        return {
            site.name: unrounded if count_site_bytes(site, rounding, format_) is None else format_
            for site, format_ in by_site.items()
        }

    plans = {UNQUANTIZED: plan(unrounded, unrounded)}
    for precision in target.precisions:
        layers = precision.layers or unrounded
        unembedding = precision.unembedding or unrounded
        if layers in formats and unembedding in (*formats, unrounded):
            plans[precision.name] = plan(layers, unembedding)
    for format_ in formats:
        if format_ != unrounded:
            plans[f"all {format_}"] = plan(format_, format_)
    unique: dict[str, dict[str, Format]] = {}
    for name, by_site in plans.items():
        if by_site not in unique.values():
            unique[name] = by_site
    return unique


def list_site_options(
    site: Site, target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[Format, int]:
    """Bytes of a site in each format that it can have; the unrounded one if there is no other."""
    sizes = {format_: count_site_bytes(site, rounding, format_) for format_ in formats}
    possible = {format_: size for format_, size in sizes.items() if size is not None}
    unrounded = target.formats[-1]
    return possible or {unrounded: count_site_bytes(site, rounding, unrounded) or 0}


def find_best_plan(
    frontier: Frontier,
    budget: QuantizationOptions,
    measure_kl: Callable[[dict[str, Format]], float],
) -> dict[str, Format]:
    """Finds the plan with the least KL within a size, or the smallest plan within a KL.

    Plans are chosen by their predicted KL, but a KL budget limits the measured one. So the chosen
    plan is measured, the bound on the prediction is scaled by budget / measured KL, and the next
    plan is chosen with that bound, until the same plan is chosen again.

    Args:
        frontier: the plans that no other plan beats in both size and KL.
        budget: the largest size, or the largest KL divergence.
        measure_kl: measures the KL divergence of a plan.

    Raises:
        CalibrationError: every plan exceeds the budget.
    """
    if budget.max_megabytes is not None:
        index = frontier.find_within_size(budget.max_megabytes * 1e6)
        if index is None:
            raise CalibrationError(
                f"--max-size is {budget.max_megabytes:g}: the smallest plan takes "
                f"{frontier.sizes[0] / 1e6:.1f} MB; raise --max-size, or allow a smaller format "
                "with --formats"
            )
        return frontier.formats(index)
    assert budget.max_kl is not None
    kls: dict[int, float] = {}
    bound, last = budget.max_kl, len(frontier) - 1
    while len(kls) < MAX_TRIES:
        within = frontier.find_within_kl(bound)
        index = last if within is None else within
        if index in kls:
            break
        kls[index] = measure_kl(frontier.formats(index))
        scale = budget.max_kl / max(kls[index], _MIN_KL)
        bound = frontier.kls[index] * (scale if scale >= 1 else scale * _MARGIN)
    if not any(kl <= budget.max_kl for kl in kls.values()):
        kls[last] = measure_kl(frontier.formats(last))
    good = [index for index, kl in kls.items() if kl <= budget.max_kl]
    if not good:
        raise CalibrationError(
            f"--max-kl is {budget.max_kl:g}: the best plan has {kls[last]:.4f} nats per token; "
            "raise --max-kl, or allow a more exact format with --formats"
        )
    return frontier.formats(min(good))
