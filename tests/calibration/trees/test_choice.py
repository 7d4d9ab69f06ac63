"""The choice of a tree by acceptance length and step time."""

import pytest
from support.measurements.latency_records import choose_by_times, curve_of
from support.measurements.ranks import table_of

from medusa_trt.calibration.options import TreeOptions
from medusa_trt.calibration.trees.choice import choose_tree
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import load_tree


def test_flat_steps_want_the_largest_tree_and_steep_ones_plain_decoding() -> None:
    flat = choose_by_times(dict.fromkeys((1, 2, 4, 8, 16), 10.0))
    assert flat.chosen.num_nodes == 16 and flat.chosen.speedup.low > 1
    steep = choose_by_times({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0})
    assert steep.chosen == steep.plain and steep.best.speedup.high < 1
    assert steep.chosen_tree == load_tree("plain") and steep.chosen_tree.name == "plain"
    greedy = choose_by_times({1: 10.0, 2: 10.0, 4: 10.0}, TreeOptions(min_speedup=9.0))
    assert greedy.chosen == greedy.plain


def test_the_choice_maximizes_accepted_length_over_measured_time() -> None:
    times = {1: 10.0, 2: 10.5, 4: 11.0, 6: 11.5, 7: 17.0, 8: 17.5, 16: 30.0}
    choice = choose_by_times(times)
    for prediction in (*choice.by_size, *choice.fixed):
        if prediction.num_nodes in times:
            step_ms = times[prediction.num_nodes]
            assert prediction.step_ms == step_ms and prediction.is_measured
            speed = 1e3 * prediction.accept_length / step_ms
            assert prediction.tokens_per_s == pytest.approx(speed)
            assert prediction.speedup.median == pytest.approx(speed / 100)
            assert choice.best.tokens_per_s >= speed
    assert choice.chosen == choice.best and choice.best.num_nodes == 6
    lengths = [prediction.accept_length for prediction in choice.by_size]
    assert lengths[-1] > lengths[0]
    assert {"chain-1", "chain-3"} <= {prediction.method for prediction in choice.fixed}


def test_an_interpolated_size_is_reported_but_not_chosen() -> None:
    choice = choose_by_times({1: 10.0, 2: 30.0, 16: 31.0, 17: 90.0})
    assert choice.best.num_nodes == 16 and choice.untried is None
    choice = choose_by_times({1: 10.0, 2: 10.0, 16: 30.0})
    assert choice.untried is not None and choice.best.num_nodes == 2


def test_the_search_needs_step_times() -> None:
    with pytest.raises(CalibrationError, match="calibrate latency"):
        choose_by_times({1: 10.0})


def test_the_context_must_lie_within_what_was_measured() -> None:
    with pytest.raises(CalibrationError, match="context 999 lies outside what was measured"):
        choose_tree(
            table_of(3),
            curve_of({1: 10.0, 2: 10.0}),
            num_heads=3,
            top_k=4,
            context=999,
            bundle_tree=load_tree("chain-2"),
            options=TreeOptions(),
        )
