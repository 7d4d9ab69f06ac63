"""`medusa-trt heads inspect` and `heads convert`: head checkpoints of all formats."""

import dataclasses
import json
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from medusa_trt.cli.parser import Verb
from medusa_trt.cli.terminal import make_table_console
from medusa_trt.errors import require_extra
from medusa_trt.export.head_conversion.options import ConvertOptions
from medusa_trt.export.heads.formats import FORMATS

if TYPE_CHECKING:
    from medusa_trt.export.heads.loading import LoadedHeads


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectArguments:
    """Show what a head checkpoint holds.

    Attributes:
        source: heads in any format: a file, a folder, a merged checkpoint, a PEFT adapter or a hub
            id.
        json: print JSON instead of a table.
    """

    source: Annotated[str, "SOURCE"]
    json: bool = False


def inspect(arguments: InspectArguments) -> None:
    """Reads heads, and prints what they are."""
    with require_extra("reading heads", "export"):
        from medusa_trt.export.heads.loading import load_heads
    loaded = load_heads(arguments.source)
    if arguments.json:
        print(json.dumps(_json_from_heads(loaded), indent=2))
    else:
        _print_table(loaded)


def convert(options: ConvertOptions) -> None:
    """Reads heads, and writes them in another format."""
    with require_extra("converting heads", "export"):
        from medusa_trt.export.head_conversion.saving import convert_heads
    loaded = convert_heads(options, lambda text: print(text, file=sys.stderr, flush=True))
    size_bytes = sum(file.stat().st_size for file in options.output.iterdir())
    print(
        f"converted {loaded.heads.num_heads} heads from {loaded.format} to {options.to}: "
        f"{options.output} ({size_bytes / 1e6:.1f} MB)",
        file=sys.stderr,
    )


def _list_formats() -> str:
    """The names and descriptions of all formats, in lines of 80 columns."""
    return "formats:\n" + "\n".join(
        textwrap.fill(
            f"{row.name:<22} {row.description}",
            80,
            initial_indent="  ",
            subsequent_indent=" " * 25,
        )
        for row in FORMATS.values()
    )


def _json_from_heads(loaded: "LoadedHeads") -> dict[str, object]:
    return {
        "path": str(loaded.path),
        "format": loaded.format,
        **dataclasses.asdict(loaded.facts),
        "dtype": _dtype_name(loaded),
        "num_parameters": loaded.num_parameters,
        "backbone": None if loaded.backbone is None else str(loaded.backbone),
        "adapter": None if loaded.adapter is None else str(loaded.adapter),
        "warnings": list(loaded.warnings),
    }


def _print_table(loaded: "LoadedHeads") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows_from_heads(loaded):
        table.add_row(name, escape(value))
    make_table_console().print(table)


def _rows_from_heads(loaded: "LoadedHeads") -> list[tuple[str, str]]:
    facts = loaded.facts
    unembedding = {
        "own": "one for each head",
        "common": "one in the file, for all heads",
        "shared": "the backbone's",
    }[facts.unembedding]
    if facts.draft_vocab_size is not None:
        unembedding += f", {facts.draft_vocab_size:,} tokens"
    biases = "with" if facts.has_biases else "without"
    rows = [
        ("file", str(loaded.path)),
        ("format", f"{loaded.format} ({FORMATS[loaded.format].description})"),
        ("heads", str(facts.num_heads)),
        ("layers", f"{facts.num_layers} a head, {biases} biases"),
        ("projection", "yes" if facts.has_projection else "no"),
        ("reads the root token", "yes" if facts.has_root_map else "no"),
        ("hidden size", f"{facts.hidden_size:,}"),
        ("unembedding", unembedding),
        ("vocabulary", "unknown" if facts.vocab_size is None else f"{facts.vocab_size:,} tokens"),
        ("token map", f"{facts.draft_vocab_size:,} tokens" if facts.has_token_map else "no"),
        ("type", _dtype_name(loaded)),
        ("parameters", f"{loaded.num_parameters:,}"),
        ("base model", facts.base_model or "not stated"),
    ]
    if loaded.backbone is not None:
        rows.append(("backbone", f"beside the heads, {len(loaded.others)} tensors"))
    if loaded.adapter is not None:
        rows.append(("adapter", f"{len(loaded.others)} tensors beside the heads"))
    return rows + [("warning", text) for text in loaded.warnings]


def _dtype_name(loaded: "LoadedHeads") -> str:
    return str(loaded.dtype).removeprefix("torch.")


VERBS = {
    "heads inspect": Verb(InspectArguments, inspect),
    "heads convert": Verb(ConvertOptions, convert, _list_formats),
}
