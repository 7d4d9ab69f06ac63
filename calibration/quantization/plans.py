"""The plans that are compared, and the choice of the best one."""

from collections.abc import Callable, Sequence

from medusa_trt.calibration.calibrate_options import QuantizationOptions
from medusa_trt.calibration.quantization.choice import Frontier
from medusa_trt.calibration.quantization.meter import Formats
from medusa_trt.calibration.quantization.section import UNQUANTIZED
from medusa_trt.errors import CalibrationError
from medusa_trt.export.quantization.rounding import Rounding
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.targets import Precision, Target
from medusa_trt.export.weight_formats import FORMAT_OF_BITS, Format, is_rounded

MOST_TRIES = 6
"""Plans that are measured to find the smallest one within a KL divergence."""

_LEAST_KL = 1e-9
_MARGIN = 0.98
"""Of a bound that is lowered, so that the next plan does not miss it by a hair."""


def formats_from_names(target: Target, names: Sequence[str] | None) -> tuple[Format, ...]:
    """What is chosen from: the target's candidates, or what the user named.

    Raises:
        CalibrationError: the target lacks one, or none of them rounds.
    """
    if names is None:
        return target.candidates
    if unknown := [name for name in names if name not in target.formats]:
        raise CalibrationError(
            f"target {target.name} has no format {unknown[0]!r}: choose from "
            f"{', '.join(target.formats)}"
        )
    found = tuple(format_ for format_ in target.formats if format_ in names)
    if not any(map(is_rounded, found)):
        raise CalibrationError(f"--formats is {','.join(names)}: name one that rounds, as int8")
    return found


def site_bytes(site: Site, rounding: Rounding, format_: Format) -> int | None:
    """Bytes of a site's matrices; None where one cannot have this format."""
    sizes = [rounding.size_bytes(*shape, format_) for shape in site.shapes]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def plan_bytes(sites: Sequence[Site], rounding: Rounding, formats: Formats) -> int:
    """Bytes of all matrices; each has its format."""
    return sum(site_bytes(site, rounding, formats[site.name]) or 0 for site in sites)


def fixed_plans(
    sites: Sequence[Site], target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[str, dict[str, Format]]:
    """Plans to compare with: no rounding, the target's precisions, each format for all sites.

    Of equal plans the first one stays. A site that cannot have a format is left as it is.
    """
    whole = target.formats[-1]

    def plan(layers: Format, unembedding: Format) -> dict[str, Format]:
        wanted = {site: unembedding if site.is_last else layers for site in sites}
        return {
            site.name: whole if site_bytes(site, rounding, format_) is None else format_
            for site, format_ in wanted.items()
        }

    plans = {UNQUANTIZED: plan(whole, whole)}
    for precision in target.precisions:
        layers, unembedding = _formats_of(precision, whole)
        if layers in formats and unembedding in (*formats, whole):
            plans[precision.name] = plan(layers, unembedding)
    plans |= {f"all {format_}": plan(format_, format_) for format_ in formats if format_ != whole}
    unique: dict[str, dict[str, Format]] = {}
    for name, each in plans.items():
        if each not in unique.values():
            unique[name] = each
    return unique


def _formats_of(precision: Precision, whole: Format) -> tuple[Format, Format]:
    """What a precision does with the layers and with the unembedding."""
    if precision.layer_bits is None or precision.unembedding_bits is None:
        return precision.weights or whole, whole
    return FORMAT_OF_BITS[precision.layer_bits], FORMAT_OF_BITS[precision.unembedding_bits]


def site_options(
    site: Site, target: Target, rounding: Rounding, formats: Sequence[Format]
) -> dict[Format, int]:
    """The formats that a site can have, with its bytes; it stays as it is where that is none."""
    sizes = {format_: site_bytes(site, rounding, format_) for format_ in formats}
    found = {format_: size for format_, size in sizes.items() if size is not None}
    whole = target.formats[-1]
    return found or {whole: site_bytes(site, rounding, whole) or 0}


def best_plan(
    frontier: Frontier,
    wanted: QuantizationOptions,
    measured_kl: Callable[[dict[str, Format]], float],
) -> dict[str, Format]:
    """The plan of least KL within a size, or the smallest one whose KL is within a bound.

    The bound is kept by the KL divergence as measured: the predicted one is scaled by what earlier
    plans have shown.

    Args:
        frontier: of all choices.
        wanted: the budget.
        measured_kl: measures a plan.

    Raises:
        CalibrationError: no plan keeps to the budget.
    """
    if wanted.max_megabytes is not None:
        index = frontier.within_size(wanted.max_megabytes * 1e6)
        if index is None:
            raise CalibrationError(
                f"--max-size is {wanted.max_megabytes:g}: the smallest plan takes "
                f"{frontier.sizes[0] / 1e6:.1f} MB; raise it, or offer a smaller format with "
                "--formats"
            )
        return frontier.formats(index)
    assert wanted.max_kl is not None
    kls: dict[int, float] = {}
    bound, last = wanted.max_kl, len(frontier) - 1
    while len(kls) < MOST_TRIES:
        found = frontier.within_kl(bound)
        index = last if found is None else found
        if index in kls:
            break
        kls[index] = measured_kl(frontier.formats(index))
        scale = wanted.max_kl / max(kls[index], _LEAST_KL)
        bound = frontier.kls[index] * (scale if scale >= 1 else scale * _MARGIN)
    if not any(kl <= wanted.max_kl for kl in kls.values()):
        kls[last] = measured_kl(frontier.formats(last))
    good = [index for index, kl in kls.items() if kl <= wanted.max_kl]
    if not good:
        raise CalibrationError(
            f"--max-kl is {wanted.max_kl:g}: the best plan has {kls[last]:.4f} nats a token; raise "
            "it, or offer a better format with --formats"
        )
    return frontier.formats(min(good))
