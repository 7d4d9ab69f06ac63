"""Step times of an engine by number of rows, learned from the steps themselves."""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

MAX_POINTS = 256
"""Largest number of points of the curve."""

_NUM_RECENT = 15
"""Number of last times of a size whose median counts."""

_STALE = 64
"""Steps of other sizes after which the times of a size are old, and count as one."""

_NUM_LOADS = 5
"""Number of last steps whose mean tells the load; small, so that a change is seen at once."""

_NUM_FIRST = 2
"""Steps of a size that are compared with the load, and not counted in it."""

_MAX_CHANGE = 2.0
"""Factor by which one time may differ from what is known of its size."""

_ROW_SHARE = 0.05
"""Share of the time of a step of one row that a further row is taken to cost until it is timed."""

_MAX_LOAD = 4.0
"""Factor by which the load may differ from 1 before all times are given for another load."""

_FORGETTING = 0.999
"""Factor of the sums behind `past_ms` at each step."""

_FIRST_SQUARES = 1e6
"""Weight of the first `past_ms`, as a sum of squares of rows × cached tokens."""


class TimedPoint(NamedTuple):
    """Time of a step, without the load of the machine.

    Attributes:
        rows: sequences × nodes.
        ms: the time in milliseconds.
        past: cached tokens of a sequence, on average.
    """

    rows: int
    ms: float
    past: float


class StepTimes:
    """The curve of step time over rows (sequences × nodes), and its growth with the context.

    Other programs slow all steps down together. So a time counts after division by the `load`: a
    robust mean, over the last steps, of their times over the expected ones. Sizes compare only with
    steps close in time, and a change of the load leaves the curve as it is. The time of a size is
    the median of its last times; what was expected before there was one counts as a time.

    Attributes:
        rows: sizes in increasing order; `num_points` of them are valid. The last one was not timed:
            it is twice as large as the largest timed one.
        ms: their times at load 1.
        past: cached tokens of a sequence at these times.
        num_points: number of points.
        past_ms: milliseconds that a further cached token adds to one row: the regression of times
            on rows × cached tokens, each about that of its size.
        load: factor of all times at present.
    """

    def __init__(self, points: Iterable[TimedPoint] = (), past_ms: float = 0.0) -> None:
        """Starts with a curve that was measured before, or without one.

        Args:
            points: one of each size, in increasing order.
            past_ms: see the class.
        """
        self.rows, self.ms, self.past = (array("d", bytes(8 * MAX_POINTS)) for _ in range(3))
        self.num_points = 0
        self.past_ms, self.load = past_ms, 1.0
        self._recent: list[deque[tuple[float, float]]] = []
        self._num_steps, self._last = 0, list[int]()
        self._loads: deque[float] = deque(maxlen=_NUM_LOADS)
        self._first_past_ms = past_ms
        self._products = self._squares = 0.0
        for point in points:
            self._insert(len(self._recent), point, _NUM_RECENT // 2)

    @property
    def largest(self) -> int:
        """Largest size that was timed often enough to guess the time of larger ones; 0 without."""
        index = len(self._recent) - 1
        while index >= 0 and len(self._recent[index]) <= _NUM_FIRST:
            index -= 1
        return int(self.rows[index]) if index >= 0 else 0

    def add(self, rows: int, past: float, ms: float) -> None:
        """Adds the time of a step.

        Args:
            rows: sequences × nodes.
            past: cached tokens of a sequence, on average.
            ms: time of the step.
        """
        num_timed = len(self._recent)
        index = bisect_left(self.rows, rows, 0, num_timed)
        if index == num_timed or self.rows[index] != rows:
            if num_timed == MAX_POINTS - 1:
                return
            known_ms = self.ms_of(rows) or ms
            self._insert(index, TimedPoint(rows, known_ms, past), 1)
            if not num_timed:
                return
        recent = self._recent[index]
        self._num_steps += 1
        if self._num_steps - self._last[index] > _STALE:
            recent.clear()
            recent.append((self.ms[index], self.past[index]))
        self._last[index] = self._num_steps
        known_ms, work = self.ms[index], rows * (past - self.past[index])
        expected_ms = max(known_ms + self.past_ms * work, known_ms / _MAX_CHANGE)
        relative_ms = ms / self.load
        if len(recent) > _NUM_FIRST or num_timed == 1:
            self._loads.append(ms / expected_ms)
            self.load = _mean_of_middle(sorted(self._loads))
        relative_ms = min(max(relative_ms, expected_ms / _MAX_CHANGE), expected_ms * _MAX_CHANGE)
        self._learn_slope(work, relative_ms - known_ms)
        recent.append((relative_ms, past))
        ordered = sorted(recent)
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        self.ms[index], self.past[index] = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
        if index == num_timed - 1:
            self._extrapolate()
        if not 1 / _MAX_LOAD < self.load < _MAX_LOAD:
            self._rescale()

    def ms_of(self, rows: int) -> float:
        """Time of this many rows at load 1, linear between the sizes; 0 before there is one."""
        index = bisect_left(self.rows, rows, 0, self.num_points)
        if index == self.num_points:
            index -= 1
        if index <= 0 or self.rows[index] == rows:
            return self.ms[max(index, 0)] * _relative_cost(rows, self.rows[max(index, 0)])
        left, right = self.rows[index - 1], self.rows[index]
        share = (rows - left) / (right - left)
        return self.ms[index - 1] + share * (self.ms[index] - self.ms[index - 1])

    def _insert(self, index: int, point: TimedPoint, num_times: int) -> None:
        """Adds a size, and moves the extrapolated point behind the last one."""
        num_timed = len(self._recent)
        for values, value in zip((self.rows, self.ms, self.past), point, strict=True):
            values[index + 1 : num_timed + 1] = values[index:num_timed]
            values[index] = value
        times = [(point.ms, point.past)] * num_times
        self._recent.insert(index, deque(times, maxlen=_NUM_RECENT))
        self._last.insert(index, self._num_steps)
        self._extrapolate()

    def _extrapolate(self) -> None:
        last = len(self._recent) - 1
        self.num_points = last + 2
        rows = self.rows[last]
        self.rows[last + 1], self.past[last + 1] = 2 * rows, self.past[last]
        self.ms[last + 1] = self.ms[last] * _relative_cost(2 * rows, rows)

    def _rescale(self) -> None:
        """Makes the present load 1. Only relations count, so times may drift with their load."""
        load, self.load = self.load, 1.0
        for index in range(self.num_points):
            self.ms[index] *= load
        for recent in self._recent:
            times = [(load * ms, past) for ms, past in recent]
            recent.clear()
            recent.extend(times)
        self._loads.clear()
        self.past_ms *= load
        self._first_past_ms *= load
        self._products *= load

    def _learn_slope(self, work: float, ms: float) -> None:
        self._products = _FORGETTING * self._products + work * ms
        self._squares = _FORGETTING * self._squares + work * work
        products = self._products + self._first_past_ms * _FIRST_SQUARES
        self.past_ms = max(0.0, products / (self._squares + _FIRST_SQUARES))


def _relative_cost(rows: float, other_rows: float) -> float:
    """How much more time this number of rows is taken to need than another one."""
    if not other_rows:
        return 0.0
    return (1 + _ROW_SHARE * (rows - 1)) / (1 + _ROW_SHARE * (other_rows - 1))


def _mean_of_middle(ordered: list[float]) -> float:
    """Mean without the lowest and the highest quarter."""
    num_left_out = len(ordered) // 4
    middle = ordered[num_left_out : len(ordered) - num_left_out]
    return sum(middle) / len(middle)
