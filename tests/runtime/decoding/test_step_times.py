"""Step times learned from steps."""

import numpy as np

from medusa_trt.runtime.decoding.step_times import StepTimes


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
