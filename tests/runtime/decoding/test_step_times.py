"""Step times learned from steps."""

import numpy as np

from medusa_trt.runtime.decoding.step_times import StepTimes

SIZES = (1, 2, 4, 8)


def test_sizes_are_tried_in_order_until_one_cannot_pay() -> None:
    times, tried = StepTimes(), []
    while (rows := times.find_untried(SIZES, max_ratio=3.0)) is not None:
        tried.append(rows)
        times.add(rows, 0, {1: 10.0, 2: 12.0, 4: 35.0, 8: 99.0}[rows])
    assert sorted({*tried}) == [1, 2, 4] and tried == sorted(tried)
    assert times.rows == [1, 2, 4]


def test_a_busy_machine_does_not_move_a_time_far() -> None:
    times = StepTimes()
    for ms in (99.0, 10.0, 11.0, 10.5, *[10.0] * 20, 500.0):
        times.add(4, 0, ms)
    assert 9.9 < times.ms[0] < 10.6


def test_the_slope_over_the_context_is_that_of_the_steps() -> None:
    rng, times = np.random.default_rng(0), StepTimes()
    for _ in range(600):
        rows, past = int(rng.choice([1, 4, 8])), float(rng.integers(0, 2000))
        times.add(rows, past, 5 + 0.5 * rows + 0.001 * rows * past + rng.normal() * 0.05)
    assert 0.0008 < times.past_ms < 0.0012
    assert times.version > 500
