"""Progress of long work on standard error: the estimated time, what is done, what is left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts pieces of work that take about equally long.

    Attributes:
        total: number of pieces; it may be set before the announcement.
        is_complete: whether a block of `until_interrupted` came to its end.
    """

    def __init__(self, total: int, unit: str) -> None:
        """Starts the clock; `unit` names the pieces, in the plural."""
        self.total, self.is_complete = total, False
        self._unit, self._num_done = unit, 0
        self._start_s = self._shown_s = time.perf_counter()
        self._is_terminal = sys.stderr.isatty()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start or the announcement."""
        return time.perf_counter() - self._start_s

    def announce(self, estimate_s: float) -> None:
        """Prints how long the work will take, and starts the clock again."""
        text = f"{self.total} {self._unit}, up to about {text_from_seconds(estimate_s)}"
        print(text, file=sys.stderr, flush=True)
        self._start_s = self._shown_s = time.perf_counter()

    def advance(self) -> None:
        """Counts a piece. A terminal is updated each time, a log only now and then."""
        self._num_done += 1
        now_s = time.perf_counter()
        if not self._is_terminal and now_s - self._shown_s < _SECONDS_BETWEEN_LINES:
            return
        self._shown_s = now_s
        left_s = self.elapsed_s / self._num_done * (self.total - self._num_done)
        text = f"{self._num_done} of {self.total} {self._unit}, {text_from_seconds(left_s)} left"
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        print(start + text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clears the terminal's line."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Runs a block of work, which a Ctrl-C may end early; `is_complete` says whether."""
        try:
            yield
            self.is_complete = True
        except KeyboardInterrupt:
            self.is_complete = False
        finally:
            self.end()


def text_from_seconds(seconds: float) -> str:
    """Formats a duration with about two digits: 12 s, 3 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
