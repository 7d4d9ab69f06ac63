"""What the verbs show: stages on standard error, tables on standard output."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_stage_printer() -> Callable[[str], None]:
    """Makes a function that shows a stage of the work, and the seconds since it was made."""
    start = time.perf_counter()

    def show(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    return show


def make_table_console(columns: int = 100) -> "Console":
    """Makes a console for tables: as wide as the terminal, or `columns` in a file or a pipe.

    Where a table has too little space, its cells go on in further lines.
    """
    # This import takes 0.1 s, which most verbs do not need.
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table

    class FoldingConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            if isinstance(renderable, Table):
                for column in renderable.columns:
                    column.overflow = "fold"  # rich would cut the cell
            return super().render(renderable, options)

    return FoldingConsole(width=None if sys.stdout.isatty() else columns, highlight=False)
