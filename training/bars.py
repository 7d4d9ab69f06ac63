"""Bars that show on standard error how far long work is, and how much time is left."""

import os
import sys
from shutil import get_terminal_size
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Bar(tqdm):  # type: ignore[misc]
    """A bar that updates a terminal at once, and a log only now and then."""

    def __init__(self, description: str, total: int, unit: str, **options: Any) -> None:
        """Opens the bar; `options` are further ones of tqdm."""
        has_width = _has_width()
        super().__init__(
            desc=description,
            total=total,
            unit=unit,
            smoothing=0,  # The time left follows from the mean speed.
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
            dynamic_ncols=has_width,
            ncols=None if has_width else get_terminal_size().columns,
            **options,
        )


def _has_width() -> bool:
    """Whether the terminal knows its width; tqdm writes nothing where it is 0."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # There is no terminal.
        return True


class BatchesBar(Bar):
    """A bar of batches that are written token by token, each of them in `max_steps` at most."""

    def __init__(self, description: str, num_batches: int, max_steps: int) -> None:
        # The note says how fast it goes; all of this fits into a terminal of 80 columns.
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        super().__init__(description, num_batches * max_steps, "step", bar_format=form)
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
