"""Bars that show on standard error how far long work is, and how much time is left."""

import sys

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Bar(tqdm):  # type: ignore[misc]
    """A bar that updates a terminal at once, and a log only now and then."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        super().__init__(
            desc=description,
            total=total,
            unit=unit,
            smoothing=0,  # The time left follows from the mean speed.
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
            dynamic_ncols=True,
        )


class BatchesBar(Bar):
    """A bar of batches that are written token by token, each of them in `max_steps` at most."""

    def __init__(self, description: str, num_batches: int, max_steps: int) -> None:
        super().__init__(description, num_batches * max_steps, "step")
        self._max_steps = max_steps

    @property
    def elapsed_s(self) -> float:
        """Seconds since the bar was opened."""
        return float(self.format_dict["elapsed"])

    def advance(self) -> None:
        """Counts a step. The last one of a batch is counted by `finish_batch`."""
        if self.n % self._max_steps < self._max_steps - 1:
            self.update()

    def finish_batch(self, note: str = "", *, is_old: bool = False) -> None:
        """Counts the rest of a batch, and shows a note behind the bar.

        A batch that an earlier run made (`is_old`) says nothing about the speed.
        """
        left = self._max_steps - self.n % self._max_steps
        self.initial += left if is_old else 0
        self.set_postfix_str(note, refresh=False)
        self.update(left)
