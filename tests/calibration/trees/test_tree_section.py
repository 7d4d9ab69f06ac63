"""Advice on the choice of a tree."""

from support.measurements.latency_records import choose_by_times

from medusa_trt.calibration.options import TreeOptions
from medusa_trt.calibration.trees.tree_section import advice_from_choice


def test_advice_names_plain_decoding_where_no_tree_pays() -> None:
    steep = choose_by_times({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0})
    assert "Plain decoding is recommended" in advice_from_choice(steep, TreeOptions())


def test_advice_names_the_size_to_measure() -> None:
    choice = choose_by_times({1: 10.0, 2: 10.0, 16: 30.0})
    assert choice.untried is not None
    assert f"--sizes {choice.untried.num_nodes}" in advice_from_choice(choice, TreeOptions())
