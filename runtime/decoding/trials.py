"""Steps of other sizes than the best one, which keep their times up to date at a bounded cost."""

from medusa_trt.runtime.decoding.step_times import StepTimes

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of nodes that are tried."""

_NEIGHBOURS = {
    size: (
        max((tried for tried in _SIZES if tried < size), default=size),
        min((tried for tried in _SIZES if tried > size), default=size),
    )
    for size in range(1, _SIZES[-1] + 1)
}
"""Next smaller and next larger one of these, by number of nodes."""

_SHARE = 0.02
"""Share of the time that trials may cost."""

_FIRST_SHARE, _MOST_SHARE = 0.5, 1.2
"""Share of a plain step's time that trials may cost at the beginning, and at most at once."""

_EVERY = 4
"""Steps from one look for a trial to the next; a look takes some 10 us."""

_SURPRISE = 1.25
"""Factor between an expected and a true time, from which on a size is tried again soon."""

_FIRST_PAUSE, _LONGEST_PAUSE = 8, 128
"""Steps after which a size is tried again; it doubles from trial to trial."""


class Trials:
    """Chooses when to step with another number of nodes than the best one.

    The sizes next to the usual one are tried, and plain decoding, with which all compare. What
    trials cost is compared with a small share of the time that has passed. Times are those of
    `StepTimes`, without the machine's load.
    """

    def __init__(self, min_nodes: int) -> None:
        """Starts without any step; plain decoding has `min_nodes` nodes."""
        self._min_nodes = min_nodes
        self._saved_ms: float | None = None
        self._num_steps, self._expected_ms = 0, 0.0
        self._last: dict[int, int] = {}
        self._pauses: dict[int, int] = {}
        self._usual: dict[int, tuple[int, float, float]] = {}

    def choose(self, times: StepTimes, count: int, most: int) -> int | None:
        """Chooses a number of nodes to try in this step; None for the best one.

        Args:
            times: the step times.
            count: number of sequences.
            most: largest number of nodes.
        """
        if self._num_steps % _EVERY or count not in self._usual or self._saved_ms is None:
            return None
        usual, _, usual_ms = self._usual[count]
        for size in (self._min_nodes, *_NEIGHBOURS[usual]):
            rows = count * size
            pause = self._pauses.get(rows, _FIRST_PAUSE)
            if (
                size == usual
                or not self._min_nodes <= size <= most
                or self._num_steps - self._last.get(rows, 0) < pause
            ):
                continue
            best_ms = times.ms_of(count * usual)
            # Old times may be too long; but twice the rows take at most twice as long.
            size_ms = min(times.ms_of(rows), best_ms * max(1.0, size / usual))
            ms = usual_ms + size_ms - best_ms
            if self._find_loss(count, size, ms) <= self._saved_ms:
                self._pauses[rows] = min(2 * pause, _LONGEST_PAUSE)
                self._expected_ms = ms
                return size
        return None

    def note_step(self, times: StepTimes, count: int, size: int, ms: float, is_trial: bool) -> None:
        """Counts a step of `size` nodes that took `ms` at load 1, heads included."""
        self._num_steps += 1
        self._last[count * size] = self._num_steps
        plain_ms = times.ms_of(count * self._min_nodes)
        if self._saved_ms is None:
            self._saved_ms = _FIRST_SHARE * plain_ms
        self._saved_ms = min(self._saved_ms + _SHARE * ms, _MOST_SHARE * plain_ms)
        if is_trial:
            if not 1 / _SURPRISE < ms / self._expected_ms < _SURPRISE:
                self._pauses[count * size] = _FIRST_PAUSE
            self._saved_ms -= max(0.0, self._find_loss(count, size, ms))

    def note_best(self, count: int, size: int, expected: float, ms: float) -> None:
        """Notes the size chosen as the best, and the tokens that it is expected to add."""
        self._usual[count] = size, expected, ms

    def _find_loss(self, count: int, size: int, ms: float) -> float:
        """Most time that a step of this size loses; expected tokens are concave in the size."""
        usual, expected, usual_ms = self._usual[count]
        if size >= usual:
            return ms - usual_ms
        share = (size - self._min_nodes) / (usual - self._min_nodes)
        return ms - usual_ms * (count + share * (expected - count)) / expected
