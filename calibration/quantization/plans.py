"""Plans: a format for each site. Fixed ones to compare with, and the best one for a budget."""

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
_MARGIN = 0.98
"""A lowered bound is multiplied by this, so that the next plan does not just miss the budget."""


def formats_from_names(target: Target, names: Sequence[str] | None) -> tuple[Format, ...]:
    """Resolves the formats to choose from: the named ones, or the target's candidates for None.

    Raises:
        CalibrationError: the target lacks one of them, or none of them rounds.
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
        raise CalibrationError(f"--formats is {','.join(names)}: name one that rounds, as int8")
    return formats


def site_bytes(site: Site, rounding: Rounding, format_: Format) -> int | None:
    """Bytes of a site's matrices; None if one of them cannot have this format."""
    sizes = [rounding.count_bytes(*shape, format_) for shape in site.shapes]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def plan_bytes(sites: Sequence[Site], rounding: Rounding, formats: Formats) -> int:
    """Bytes of all matrices in a plan."""
    return sum(site_bytes(site, rounding, formats[site.name]) or 0 for site in sites)


def fixed_plans(
    sites: Sequence[Site], target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[str, dict[str, Format]]:
    """Makes the plans to compare with: unrounded, the target's precisions, one format for all.

    A site that cannot have a format stays unrounded. Of equal plans only the first one is kept.
    """
    unrounded = target.formats[-1]

    def plan(layers: Format, unembedding: Format) -> dict[str, Format]:
        wanted = {site: unembedding if site.is_last else layers for site in sites}
        return {
            site.name: unrounded if site_bytes(site, rounding, format_) is None else format_
            for site, format_ in wanted.items()
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


def site_options(
    site: Site, target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[Format, int]:
    """Bytes of a site in each format that it can have; only the unrounded one if it has none."""
    sizes = {format_: site_bytes(site, rounding, format_) for format_ in formats}
    possible = {format_: size for format_, size in sizes.items() if size is not None}
    unrounded = target.formats[-1]
    return possible or {unrounded: site_bytes(site, rounding, unrounded) or 0}


def best_plan(
    frontier: Frontier,
    budget: QuantizationOptions,
    measure_kl: Callable[[dict[str, Format]], float],
) -> dict[str, Format]:
    """Finds the plan with the least KL within a size, or the smallest plan within a KL.

    A KL budget holds for the measured divergence: each measured plan scales the prediction that
    the next plan is chosen by.

    Args:
        frontier: the best choices.
        budget: the largest size, or the largest KL divergence.
        measure_kl: measures the KL divergence of a plan.

    Raises:
        CalibrationError: no plan keeps to the budget.
    """
    if budget.max_megabytes is not None:
        index = frontier.within_size(budget.max_megabytes * 1e6)
        if index is None:
            raise CalibrationError(
                f"--max-size is {budget.max_megabytes:g}: the smallest plan takes "
                f"{frontier.sizes[0] / 1e6:.1f} MB; raise it, or offer a smaller format with "
                "--formats"
            )
        return frontier.formats(index)
    assert budget.max_kl is not None
    kls: dict[int, float] = {}
    bound, last = budget.max_kl, len(frontier) - 1
    while len(kls) < MAX_TRIES:
        within = frontier.within_kl(bound)
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
            f"--max-kl is {budget.max_kl:g}: the best plan has {kls[last]:.4f} nats a token; raise "
            "it, or offer a better format with --formats"
        )
    return frontier.formats(min(good))
