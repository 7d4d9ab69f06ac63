"""Step times of an engine by number of rows, learned from the steps themselves."""

from bisect import bisect_left

MAX_POINTS = 256
"""Largest number of sizes whose times are kept."""

_NUM_TIMED = 3
"""Steps of a size that are timed before the next larger size is tried."""

_WEIGHT = 0.1
"""Weight of a new step in the running means of its size."""

_MAX_OUTLIER = 1.5
"""A step that takes longer than this many times the mean counts as so long: others were at work."""

_FORGETTING = 0.999
"""Factor of the sums behind `past_ms` at each step."""


class StepTimes:
    """The curve of step time over rows (sequences × nodes), and its growth with the context.

    It starts without points. The first steps try sizes in increasing order, so a session measures
    its machine while it works; sizes in between are interpolated.

    Attributes:
        rows: sizes that were measured, in increasing order.
        ms: running mean of their times in milliseconds.
        past: running mean of the cached tokens of a sequence at these times.
        past_ms: milliseconds that a further cached token adds to one row: the regression of times
            on rows × cached tokens, each about the mean of its size.
        version: changes with every new time.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.ms: list[float] = []
        self.past: list[float] = []
        self.past_ms = 0.0
        self.version = 0
        self._num_steps: dict[int, int] = {}
        self._sums = [0.0, 0.0]  # of the products and of the squares

    def add(self, rows: int, past: float, ms: float) -> None:
        """Adds the time of a step; the first one of a size does not count, as it allocates.

        Args:
            rows: sequences × nodes.
            past: cached tokens of a sequence, on average.
            ms: time of the step.
        """
        count = self._num_steps.get(rows, 0)
        self._num_steps[rows] = count + 1
        if count == 0 or (count == 1 and len(self.rows) == MAX_POINTS):
            return
        self.version += 1
        index = bisect_left(self.rows, rows)
        if count == 1:
            self.rows.insert(index, rows)
            self.ms.insert(index, ms)
            self.past.insert(index, past)
            return
        mean_ms, mean_past = self.ms[index], self.past[index]
        if count > _NUM_TIMED:
            self._learn_slope(rows * (past - mean_past), min(ms, _MAX_OUTLIER * mean_ms) - mean_ms)
        elif ms > mean_ms:
            return
        weight = _WEIGHT if count > _NUM_TIMED else 1.0
        self.ms[index] += weight * (min(ms, _MAX_OUTLIER * mean_ms) - mean_ms)
        self.past[index] += weight * (past - mean_past)

    def ms_of(self, rows: int) -> float:
        """Time of this size, or of the next larger or largest one; 0 before there is one."""
        return self.ms[min(bisect_left(self.rows, rows), len(self.rows) - 1)] if self.rows else 0.0

    def is_timed(self, rows: int) -> bool:
        """Whether enough steps of this size were timed."""
        return self._num_steps.get(rows, 0) > _NUM_TIMED

    def _learn_slope(self, work: float, ms: float) -> None:
        products, squares = (_FORGETTING * part for part in self._sums)
        self._sums = [products + work * ms, squares + work * work]
        if self._sums[1] > 0:
            self.past_ms = max(0.0, self._sums[0] / self._sums[1])
