"""Bars that show on standard error how far long work is, and how much time is left."""

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


def open_bar(description: str, total: int, unit: str) -> Any:
    """Opens a tqdm bar. A terminal is updated at once, a log only now and then."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        smoothing=0,  # The time left follows from the mean speed.
        mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
        dynamic_ncols=True,
    )


class BatchesBar:
    """A bar of batches that are written token by token, each of them in `max_steps` at most."""

    def __init__(self, description: str, num_batches: int, max_steps: int) -> None:
        self._bar = open_bar(description, num_batches * max_steps, "step")
        self._max_steps = max_steps

    def __enter__(self) -> "BatchesBar":
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the bar was opened."""
        return float(self._bar.format_dict["elapsed"])

    def advance(self) -> None:
        """Counts a step. The last one of a batch is counted by `finish_batch`."""
        if self._bar.n % self._max_steps < self._max_steps - 1:
            self._bar.update()

    def finish_batch(self, note: str = "", *, is_old: bool = False) -> None:
        """Counts the rest of a batch.

        Args:
            note: shown behind the bar.
            is_old: whether an earlier run made the batch, so that it says nothing about the speed.
        """
        left = self._max_steps - self._bar.n % self._max_steps
        self._bar.initial += left if is_old else 0
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(left)
