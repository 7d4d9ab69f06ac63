"""What the section on quantization says in words."""

from support.measurements.calibrations import QUANTIZATION

from medusa_trt.calibration.quantization.section import (
    PLAN,
    UNQUANTIZED,
    advice_from_plans,
    text_from_counts,
)


def test_the_plan_is_compared_with_all_but_the_unquantized_model() -> None:
    text = advice_from_plans(QUANTIZATION.plans)
    assert text.startswith("The plan (83 int4, 38 int8) takes 101.0 MB at a KL divergence")
    assert "int8: 136.0 MB" in text and UNQUANTIZED not in text


def test_without_a_plan_the_advice_is_to_go_on() -> None:
    others = [plan for plan in QUANTIZATION.plans if plan.name != PLAN]
    assert "run the same command again" in advice_from_plans(others)


def test_counts_are_in_the_order_of_the_formats() -> None:
    assert text_from_counts({"int8": 38, "int4": 83}) == "83 int4, 38 int8"
