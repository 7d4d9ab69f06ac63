"""Plans within a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.format_options import Sites, cost, every_choice, sites

from medusa_trt.calibration.options import QuantizationOptions
from medusa_trt.calibration.quantization.frontier import Option, frontier_from_options
from medusa_trt.calibration.quantization.plans import find_best_plan
from medusa_trt.errors import CalibrationError
from medusa_trt.export.weight_formats import Format


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
    measured = [(size, factor * predicted) for size, predicted, _ in every_choice(options)]
    try:
        plan = find_best_plan(frontier, QuantizationOptions(max_kl=max_kl), meter)
    except CalibrationError as error:
        assert min(kl for _, kl in measured) > max_kl
        assert "the best plan has" in str(error)
        return
    assert meter.count <= 7
    size, predicted = cost(options, plan)
    assert factor * predicted <= max_kl
    if factor == 1:
        assert size == min(size for size, kl in measured if kl <= max_kl)


def test_a_sum_that_misses_is_corrected_by_what_was_measured() -> None:
    options: Sites = {
        f"layers.{i}.o": [Option("int4", 10, 0.01 * 1.2**i), Option("int8", 20, 0.0)]
        for i in range(20)
    }
    choices = frontier_from_options(options)
    meter = Meter(options, 2.0)
    plan = find_best_plan(choices, QuantizationOptions(max_kl=1.0), meter)
    size, predicted = cost(options, plan)
    best = choices.find_within_kl(0.5)
    assert best is not None and size <= choices.sizes[best] + 10 and predicted <= 0.5
    with pytest.raises(CalibrationError, match=r"plan takes 0\.0 MB; raise --max-size"):
        find_best_plan(choices, QuantizationOptions(max_megabytes=1e-6), meter)
    plan = find_best_plan(choices, QuantizationOptions(max_megabytes=250e-6), meter)
    assert cost(options, plan)[0] <= 250
