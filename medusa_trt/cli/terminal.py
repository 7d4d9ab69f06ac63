"""What the verbs show: stages on standard error, tables on standard output."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def stage_printer() -> Callable[[str], None]:
    """A function that shows a stage of the work and the seconds since the first."""
    start = time.perf_counter()

    def show(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    return show


def table_console(columns: int = 100) -> "Console":
    """A console for tables, as wide as the terminal; `columns` wide in a file or a pipe."""
    from rich.console import Console  # takes 0.1 s, which most verbs do not need

    return Console(width=None if sys.stdout.isatty() else columns, highlight=False)
