"""Step times learned from steps."""

import numpy as np
import pytest

from medusa_trt.runtime.decoding.step_times import MAX_POINTS, StepTimes, TimedPoint


def curve(times: StepTimes) -> dict[int, float]:
    """Times by timed size, over that of the smallest one; the last point is not timed."""
    last = times.num_points - 1
    relative = [ms / times.ms[0] for ms in times.ms[:last]]
    return {int(rows): ms for rows, ms in zip(times.rows[:last], relative, strict=True)}


def add_all(times: StepTimes, ms_by_rows: dict[int, float], rounds: int = 8) -> None:
    for _ in range(rounds):
        for rows, ms in ms_by_rows.items():
            times.add(rows, 0, ms)


def test_times_of_steps_in_turn_are_learned() -> None:
    times = StepTimes()
    add_all(times, {1: 10.0, 8: 14.0, 2: 10.5})
    assert curve(times) == pytest.approx({1: 1.0, 2: 1.05, 8: 1.4})


def test_single_long_steps_do_not_count() -> None:
    times = StepTimes()
    for number in range(40):
        times.add(1, 0, 10.0)
        times.add(4, 0, 500.0 if number % 8 == 3 else 12.0)
    assert curve(times) == pytest.approx({1: 1.0, 4: 1.2}, rel=0.02)


def test_a_long_first_step_of_a_size_moves_its_time_a_little() -> None:
    times = StepTimes()
    add_all(times, {1: 10.0}, 4)
    times.add(2, 0, 500.0)
    assert times.ms_of(2) < 16
    times.add(2, 0, 11.0)
    assert times.ms_of(2) == pytest.approx(11.0)


def test_a_change_of_the_load_changes_no_relation() -> None:
    """A size that is not used meanwhile would look cheap if times were kept as they are."""
    times = StepTimes()
    add_all(times, {1: 10.0, 4: 12.0, 8: 15.0})
    for _ in range(20):
        times.add(4, 0, 24.0)
    assert curve(times) == pytest.approx({1: 1.0, 4: 1.2, 8: 1.5}, rel=0.01)
    assert times.load * times.ms_of(8) == pytest.approx(30.0, rel=0.05)


def test_a_large_load_becomes_the_measure() -> None:
    times = StepTimes()
    add_all(times, {1: 10.0, 4: 12.0})
    add_all(times, {1: 1000.0, 4: 1200.0})
    assert 0.25 < times.load < 4
    assert curve(times) == pytest.approx({1: 1.0, 4: 1.2}, rel=0.01)
    assert times.load * times.ms_of(1) == pytest.approx(1000, rel=0.01)


def test_a_size_whose_cost_changed_is_learned_anew() -> None:
    times = StepTimes()
    add_all(times, {1: 10.0, 4: 12.0})
    add_all(times, {1: 10.0, 4: 20.0}, 20)
    assert times.ms_of(4) / times.ms_of(1) == pytest.approx(2, rel=0.02)


def test_sizes_between_are_interpolated_and_larger_ones_guessed() -> None:
    times = StepTimes([TimedPoint(1, 10.0, 0), TimedPoint(8, 17.0, 0)])
    assert times.largest == 8
    assert [times.ms_of(rows) for rows in (1, 2, 8)] == pytest.approx([10, 11, 17])
    assert 17 < times.ms_of(12) < times.ms_of(16) < times.ms_of(32) < 40
    assert StepTimes().ms_of(3) == StepTimes().largest == 0


def test_the_largest_size_counts_once_it_was_timed_often_enough() -> None:
    times = StepTimes()
    largest = []
    for rows in (1, 1, 1, 2, 2):
        times.add(rows, 0, 10.0)
        largest.append(times.largest)
    assert largest == [0, 0, 1, 1, 2]


def test_the_slope_over_the_context_is_that_of_the_steps() -> None:
    rng, times = np.random.default_rng(0), StepTimes()
    for _ in range(600):
        rows, past = int(rng.choice([1, 4, 8])), float(rng.integers(0, 2000))
        times.add(rows, past, 5 + 0.5 * rows + 0.001 * rows * past + rng.normal() * 0.05)
    assert 0.0009 < times.past_ms * times.load < 0.0011


def test_more_sizes_than_fit_are_not_kept() -> None:
    times = StepTimes()
    for rows in range(1, MAX_POINTS + 50):
        times.add(rows, 0, 1.0 * rows)
    assert times.num_points == MAX_POINTS
    assert times.rows[: times.num_points - 1].tolist() == list(range(1, MAX_POINTS))
