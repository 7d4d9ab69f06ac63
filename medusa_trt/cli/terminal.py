"""What the verbs show: stages on standard error, tables on standard output."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def new_stage_printer() -> Callable[[str], None]:
    """Makes a function that shows a stage of the work, and the seconds since it was made."""
    start = time.perf_counter()

    def show(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    return show


def new_table_console(columns: int = 100) -> "Console":
    """Makes a console for tables: as wide as the terminal, or `columns` in a file or a pipe."""
    from rich.console import Console  # takes 0.1 s, which most verbs do not need

    return Console(width=None if sys.stdout.isatty() else columns, highlight=False)
