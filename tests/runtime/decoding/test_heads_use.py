"""When the heads run: rests after steps that did not pay, and steps with copied tokens."""

from collections.abc import Callable

import numpy as np
import pytest

from medusa_trt.runtime.decoding.growth import Growth
from medusa_trt.runtime.decoding.heads_use import HeadsUse
from medusa_trt.runtime.engines.base import TreeBatch

PLAIN_MS = 10.0


def growth_of(expected: float, step_ms: float) -> Growth:
    """A step of one sequence that is expected to add so many tokens in so much time."""
    nothing = np.zeros((1, 1), np.int64)
    batch = TreeBatch(nothing, nothing, np.zeros((1, 1, 1), np.float32))
    return Growth(batch, [], [], [], expected, step_ms, PLAIN_MS)


def list_runs(use: HeadsUse, num_steps: int, judge: Callable[[], Growth]) -> list[int]:
    """Lists the steps in which the heads ran, without copied tokens."""
    runs = []
    for step in range(num_steps):
        if use.pays([[]], [0.5], PLAIN_MS):
            runs.append(step)
            use.judge(judge(), 1)
    return runs


def test_rests_double_while_the_heads_gain_nothing() -> None:
    runs = list_runs(HeadsUse(), 200, lambda: growth_of(1.0, PLAIN_MS + 1))
    assert np.diff(runs).tolist() == [2, 4, 8, 16, 32, 33, 33, 33, 33]


def test_heads_run_at_every_step_while_they_pay_and_again_after_they_paid_once() -> None:
    use = HeadsUse()
    use.add_time(1, 5.0)
    # 1.3 tokens in 10 + 5 ms are slower than a step of 10 ms, and 3 tokens are faster.
    bad, good = growth_of(1.3, 10.0), growth_of(3.0, 10.0)
    results = iter([*[bad] * 3, *[good] * 6, *[bad] * 2])
    runs = list_runs(use, 26, lambda: next(results))
    assert runs == [0, 2, 6, *range(14, 20), 20, 22]


@pytest.mark.parametrize(("share", "runs"), [(0.0, True), (0.7, True), (0.85, False), (1.0, False)])
def test_heads_run_beside_copies_only_if_these_are_doubtful(share: float, runs: bool) -> None:
    """A copy that is wrong with probability 0.2 leaves 2 of the 10 ms that the heads may gain."""
    use = HeadsUse()
    use.add_time(2, 2.0)
    copies = [[3, 4], [5]]
    assert use.pays(copies, [share, share], PLAIN_MS) == runs
    assert use.pays([[3, 4], []], [share, share], PLAIN_MS), "one sequence has no copy"


def test_heads_are_tried_again_beside_copies_that_were_always_right() -> None:
    use = HeadsUse()
    use.add_time(1, 2.0)
    assert [use.pays([[3]], [1.0], PLAIN_MS) for _ in range(66)].count(True) == 2


def test_the_time_of_the_heads_is_the_median_of_the_last_nine() -> None:
    use = HeadsUse()
    assert use.ms_of(1) == 0
    times = [50.0, 1.0, 2.0, 300.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    for ms in times:
        use.add_time(1, ms)
    assert use.ms_of(1) == np.median(times[-9:]) and use.ms_of(2) == 0
