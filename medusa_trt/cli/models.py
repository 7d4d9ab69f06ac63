"""The command line's list of models: `medusa-trt models`."""

import argparse
import json
import sys

from medusa_trt.errors import MedusaError

_COLUMNS_OF_FILES = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `models`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Lists the aliases with their backbones, heads and trees.

    Raises:
        MedusaError: a package is missing.
    """
    try:
        from medusa_trt.export.models.aliases import aliases
    except ImportError as error:
        raise MedusaError(
            f"listing models needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error
    import msgspec

    if arguments.json:
        print(json.dumps(msgspec.to_builtins(aliases()), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("alias", "backbone", "heads", "tree", box=None, pad_edge=False)
    for name, alias in aliases().items():
        packaged = "" if alias.package is None else alias.package.requirement
        table.add_row(
            name,
            alias.repository or packaged,
            alias.heads or "none public: --heads, or medusa-trt train",
            alias.tree or "the target's",
        )
    console = Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES, highlight=False)
    console.print(table)
    console.print("\nAny other model of a supported architecture works by its folder or hub id.")
