"""Progress of long work on standard error: what it will cost, what is done, what is left."""

import sys
import time

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts pieces of work that take about equally long."""

    def __init__(self, total: int, unit: str) -> None:
        """Starts the clock; `unit` names the pieces, in the plural."""
        self._total, self._unit, self._num_done = total, unit, 0
        self._start_s = self._shown_s = time.perf_counter()
        self._is_terminal = sys.stderr.isatty()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start or the announcement."""
        return time.perf_counter() - self._start_s

    def announce(self, estimate_s: float) -> None:
        """Says what it will cost, and starts the clock again."""
        text = f"{self._total} {self._unit}, up to about {duration_text(estimate_s)}"
        print(text, file=sys.stderr, flush=True)
        self._start_s = self._shown_s = time.perf_counter()

    def advance(self) -> None:
        """Counts a piece; a terminal is updated each time, a log now and then."""
        self._num_done += 1
        now_s = time.perf_counter()
        if not self._is_terminal and now_s - self._shown_s < _SECONDS_BETWEEN_LINES:
            return
        self._shown_s = now_s
        left_s = self.elapsed_s / self._num_done * (self._total - self._num_done)
        text = f"{self._num_done} of {self._total} {self._unit}, {duration_text(left_s)} left"
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        print(start + text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Removes the terminal's line."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration_text(seconds: float) -> str:
    """Two digits or so: 12 s, 3 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
