"""The choice of formats under a budget, against trying everything."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.calibration.calibrate_options import QuantizationOptions
from medusa_trt.calibration.quantization.choice import Frontier, Option, frontier_from_options
from medusa_trt.calibration.quantization.plans import best_plan
from medusa_trt.errors import CalibrationError
from medusa_trt.export.weight_formats import Format

FORMATS: tuple[Format, ...] = ("int4", "int8", "fp16")
Sites = dict[str, list[Option]]


@st.composite
def sites(draw: st.DrawFn) -> Sites:
    """A few sites; sums of KLs are exact, whatever their order."""
    found = {}
    for number in range(draw(st.integers(1, 5))):
        formats = draw(st.lists(st.sampled_from(FORMATS), min_size=1, max_size=3, unique=True))
        found[f"layers.{number}.o"] = [
            Option(format_, draw(st.integers(0, 20)), draw(st.integers(0, 64)) / 64)
            for format_ in formats
        ]
    return found


def every_choice(options: Sites) -> list[tuple[int, float, dict[str, Format]]]:
    """Size, KL and formats of each combination."""
    return [
        (
            sum(option.size_bytes for option in chosen),
            sum(option.kl for option in chosen),
            {name: option.format for name, option in zip(options, chosen, strict=True)},
        )
        for chosen in product(*options.values())
    ]


def cost(options: Sites, formats: dict[str, Format]) -> tuple[int, float]:
    """Size and KL of a choice."""
    assert list(formats) == list(options)
    chosen = [
        next(option for option in options[name] if option.format == format_)
        for name, format_ in formats.items()
    ]
    return sum(option.size_bytes for option in chosen), sum(option.kl for option in chosen)


@given(sites())
def test_the_frontier_is_what_no_combination_beats(options: Sites) -> None:
    choices = every_choice(options)
    best = sorted(
        {
            (size, kl)
            for size, kl, _ in choices
            if not any(
                other_size <= size and other_kl <= kl and (other_size, other_kl) != (size, kl)
                for other_size, other_kl, _ in choices
            )
        }
    )
    frontier = frontier_from_options(options)
    assert list(zip(frontier.sizes.tolist(), frontier.kls.tolist(), strict=True)) == best
    for index, expected in enumerate(best):
        assert cost(options, frontier.formats(index)) == expected


@given(sites(), st.integers(0, 100), st.integers(0, 256))
def test_budgets_are_met_by_the_best_combination(options: Sites, size: int, kl: int) -> None:
    choices, frontier, max_kl = every_choice(options), frontier_from_options(options), kl / 64
    index = frontier.within_size(size)
    kls = [found for bytes_, found, _ in choices if bytes_ <= size]
    assert (index is None) == (not kls)
    assert index is None or frontier.kls[index] == min(kls)
    index = frontier.within_kl(max_kl)
    sizes = [bytes_ for bytes_, found, _ in choices if found <= max_kl]
    assert (index is None) == (not sizes)
    assert index is None or frontier.sizes[index] == min(sizes)


class Meter:
    """Measures `factor` times what is predicted, and counts."""

    def __init__(self, options: Sites, factor: float) -> None:
        self.options, self.factor, self.count = options, factor, 0

    def __call__(self, formats: dict[str, Format]) -> float:
        self.count += 1
        return self.factor * cost(self.options, formats)[1]


@given(sites(), st.integers(1, 256), st.sampled_from([0.25, 1.0, 1.5, 4.0]))
def test_the_measured_kl_is_within_the_bound(options: Sites, kl: int, factor: float) -> None:
    max_kl = kl / 64
    meter = Meter(options, factor)
    frontier = frontier_from_options(options)
    measured = [(size, factor * found) for size, found, _ in every_choice(options)]
    try:
        plan = best_plan(frontier, QuantizationOptions(max_kl=max_kl), meter)
    except CalibrationError as error:
        assert min(found for _, found in measured) > max_kl
        assert "the best plan has" in str(error)
        return
    assert meter.count <= 7
    size, predicted = cost(options, plan)
    assert factor * predicted <= max_kl
    if factor == 1:
        assert size == min(size for size, found in measured if found <= max_kl)


def test_a_sum_that_misses_is_corrected_by_what_was_measured() -> None:
    options: Sites = {
        f"layers.{i}.o": [Option("int4", 10, 0.01 * 1.2**i), Option("int8", 20, 0.0)]
        for i in range(20)
    }
    choices = frontier_from_options(options)
    meter = Meter(options, 2.0)
    plan = best_plan(choices, QuantizationOptions(max_kl=1.0), meter)
    size, predicted = cost(options, plan)
    best = choices.within_kl(0.5)
    assert best is not None and size <= choices.sizes[best] + 10 and predicted <= 0.5
    with pytest.raises(CalibrationError, match=r"the smallest plan takes 0\.0 MB; raise it"):
        best_plan(choices, QuantizationOptions(max_megabytes=1e-6), meter)
    plan = best_plan(choices, QuantizationOptions(max_megabytes=250e-6), meter)
    assert cost(options, plan)[0] <= 250


def test_every_layer_of_a_large_model_can_be_chosen_for() -> None:
    sizes: Sequence[int] = (48, 16, 86, 43)
    options: Sites = {}
    for number in range(128):
        weights, kl = sizes[number % 4] << 20, 1 / (3 + number)
        options[str(number)] = [
            Option("int4", weights * 18 // 32, kl),
            Option("int8", weights * 33 // 32, kl / 200),
            Option("fp16", weights * 2, 0.0),
        ]
    choices = frontier_from_options(options)
    assert isinstance(choices, Frontier) and len(choices) > 1000
    whole = cost(options, choices.formats(len(choices) - 1))
    assert whole == (2 * sum(sizes) * 32 << 20, 0.0)
