"""`medusa-trt models`: the models that have a short name."""

import json
from dataclasses import dataclass

from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.errors import require_extra


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsArguments:
    """List the aliases: short names of models whose heads and trees are known.

    Attributes:
        json: print JSON instead of a table.
    """

    json: bool = False


def list_models(arguments: ModelsArguments) -> None:
    """Prints a line for each alias."""
    with require_extra("listing models", "export"):
        from medusa_trt.export.models.aliases import load_aliases
    import msgspec

    if arguments.json:
        print(json.dumps(msgspec.to_builtins(load_aliases()), indent=2))
        return
    from rich.table import Table

    table = Table("alias", "model", "heads", "tree", box=None, pad_edge=False)
    for name, alias in load_aliases().items():
        packaged = "" if alias.package is None else alias.package.requirement
        table.add_row(
            name,
            alias.repository or packaged,
            alias.heads or "none public: --heads, or medusa-trt train",
            alias.tree or "the target's",
        )
    console = make_table_console(columns=160)
    console.print(table)
    console.print("\nAny other model of a supported architecture works by its folder or hub id.")


VERBS = {"models": Verb(ModelsArguments, list_models)}
