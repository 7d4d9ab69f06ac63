"""Trials of other sizes: which ones, how often, and at what cost."""

from itertools import pairwise

import pytest

from medusa_trt.runtime.decoding.step_times import StepTimes, TimedPoint
from medusa_trt.runtime.decoding.trials import Trials

USUAL, EXPECTED = 8, 2.4


def step_ms(nodes: int) -> float:
    return 5.0 + 0.4 * nodes


def run(
    trials: Trials, times: StepTimes, num_steps: int, tried_factor: float = 1.0
) -> list[tuple[int, int]]:
    """Steps of one sequence whose best size is `USUAL`; lists each trial's step and size."""
    tried = []
    for step in range(num_steps):
        size = trials.choose(times, 1, 32)
        if size is None:
            trials.note_best(1, USUAL, EXPECTED, step_ms(USUAL))
            trials.note_step(times, 1, USUAL, step_ms(USUAL), False)
        else:
            tried.append((step, size))
            trials.note_step(times, 1, size, tried_factor * step_ms(size), True)
    return tried


@pytest.fixture
def times() -> StepTimes:
    return StepTimes([TimedPoint(rows, step_ms(rows), 0) for rows in range(1, 33)])


def test_plain_decoding_and_the_sizes_beside_the_usual_one_are_tried(times: StepTimes) -> None:
    assert {size for _, size in run(Trials(1), times, 2000)} == {1, 6, 12}
    assert {size for _, size in run(Trials(8), times, 2000)} == {12}, "8 is the least"


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_trials_cost_their_share_of_the_time(times: StepTimes, factor: float) -> None:
    """Of a smaller size also the tokens that it lacks count, linear from plain decoding on.

    A trial that takes twice its expected time costs more than was saved for it, but only once.
    """
    num_steps, usual = 4000, step_ms(USUAL)
    tried = [size for _, size in run(Trials(1), times, num_steps, factor)]
    losses = []
    for size in tried:
        tokens = 1 + (EXPECTED - 1) * min(1.0, (size - 1) / (USUAL - 1))
        losses.append(max(0.0, factor * step_ms(size) - usual * tokens / EXPECTED))
    total_ms = (num_steps - len(tried)) * usual + factor * sum(map(step_ms, tried))
    assert 0 < sum(losses) <= 0.5 * step_ms(1) + 0.02 * total_ms + max(losses)


def test_a_size_whose_time_is_known_is_tried_less_and_less(times: StepTimes) -> None:
    steps = [step for step, size in run(Trials(1), times, 4000) if size == 12]
    pauses = [later - earlier for earlier, later in pairwise(steps)]
    assert pauses[0] <= 32 and min(pauses[-5:]) >= 128


def test_a_size_that_takes_other_times_than_expected_is_tried_often(times: StepTimes) -> None:
    """It takes half the time that is known of it, as after a change of the machine."""
    known, changed = (len(run(Trials(1), times, 2000, factor)) for factor in (1.0, 0.5))
    assert changed > 2 * known


def test_nothing_is_tried_before_there_is_a_usual_size(times: StepTimes) -> None:
    trials = Trials(1)
    assert trials.choose(times, 1, 32) is None
    trials.note_best(1, USUAL, EXPECTED, step_ms(USUAL))
    trials.note_step(times, 1, USUAL, step_ms(USUAL), False)
    assert trials.choose(times, 2, 32) is None, "two sequences have no usual size yet"
