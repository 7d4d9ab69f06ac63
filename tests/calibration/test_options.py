"""Options of the calibrations."""

import pytest

from medusa_trt.calibration.options import DEFAULT_MAX_KL, LatencyOptions, QuantizationOptions
from medusa_trt.errors import CalibrationError
from medusa_trt.export.targets import TARGETS


def test_plain_decoding_is_always_timed_and_sizes_are_sorted() -> None:
    options = LatencyOptions(sizes=(8, 2, 8), contexts=(64, 16))
    assert options.sizes == (1, 2, 8) and options.contexts == (16, 64)


def test_the_budget_is_a_divergence_unless_a_size_is_given() -> None:
    assert QuantizationOptions().max_kl == DEFAULT_MAX_KL
    assert QuantizationOptions(max_megabytes=2).max_kl is None
    assert QuantizationOptions(precision="int4").max_kl is None


def test_a_precision_needs_no_budget() -> None:
    for budget in ({"max_kl": 0.1}, {"max_megabytes": 80.0}):
        with pytest.raises(CalibrationError, match="--precision excludes --max-kl and --max-size"):
            QuantizationOptions(precision="int4", **budget)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="num_compensation_prompts is 0"):
        QuantizationOptions(num_compensation_prompts=0)


def test_the_help_says_the_defaults_that_depend_on_other_options() -> None:
    text = " ".join((QuantizationOptions.__doc__ or "").split())
    assert f"(default: {DEFAULT_MAX_KL}, without `max_megabytes`)" in text
    for name in ("ort-cpu", "ort-cuda"):
        assert f"{','.join(TARGETS[name].candidates)} for {name}" in text
    others = {target.candidates for name, target in TARGETS.items() if "ort" not in name}
    (candidates,) = others
    assert f"{','.join(candidates)} for the other targets" in text
