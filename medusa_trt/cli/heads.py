"""The command line's heads: `medusa-trt heads inspect SOURCE` and `medusa-trt heads convert`."""

import argparse
import dataclasses
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.errors import MedusaError
from medusa_trt.export.heads.formats import FORMATS, HeadFormat

if TYPE_CHECKING:
    from medusa_trt.export.heads.loading import LoadedHeads

_SOURCE = "a file, a folder, a merged checkpoint, a PEFT adapter or a hub id, in any format"
_COLUMNS_OF_FILES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verbs of `heads` with their arguments."""
    verbs = parser.add_subparsers(dest="heads_verb", required=True, metavar="VERB")
    inspect = verbs.add_parser("inspect", help="show what a head checkpoint holds")
    inspect.add_argument("source", metavar="SOURCE", help=_SOURCE)
    inspect.add_argument("--json", action="store_true", help="print JSON instead of a table")
    convert = verbs.add_parser(
        "convert",
        help="write heads in another format",
        epilog="formats:\n" + "\n".join(map(_format_lines, FORMATS.values())),
    )
    convert.add_argument("source", metavar="SOURCE", help=_SOURCE)
    convert.add_argument("--to", required=True, metavar="FORMAT", help="one of those below")
    convert.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="the folder to write"
    )
    convert.add_argument(
        "--model", help="the backbone, for formats that need its name, its unembedding or all of it"
    )
    convert.add_argument(
        "--dtype", help="float32, float16 or bfloat16 (default: the source's; of FP8 float32)"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace what it wrote before")
    for verb in (inspect, convert):
        verb.add_argument("--verbose", action="store_true", help="show tracebacks")


def _format_lines(row: HeadFormat) -> str:
    """A format's name and description for the help, in lines of 80 columns."""
    words, indent = f"{row.name:<22} {row.description}", " " * 25
    return textwrap.fill(words, 80, initial_indent="  ", subsequent_indent=indent)


def run(arguments: argparse.Namespace) -> None:
    """Inspects or converts.

    Raises:
        MedusaError: whatever the user can cause.
    """
    try:
        if arguments.heads_verb == "inspect":
            _inspect(arguments)
        else:
            _convert(arguments)
    except ImportError as error:
        raise MedusaError(
            f"reading heads needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error


def _inspect(arguments: argparse.Namespace) -> None:
    from medusa_trt.export.heads.loading import load_heads

    loaded = load_heads(arguments.source)
    if arguments.json:
        print(json.dumps(_as_json(loaded), indent=2))
    else:
        _print_table(loaded)


def _convert(arguments: argparse.Namespace) -> None:
    from medusa_trt.export.head_conversion.saving import ConvertOptions, convert_heads

    options = ConvertOptions(
        source=arguments.source,
        to=arguments.to,
        output=arguments.output,
        model=arguments.model,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
    )
    loaded = convert_heads(options, lambda text: print(text, file=sys.stderr, flush=True))
    size_bytes = sum(file.stat().st_size for file in arguments.output.iterdir())
    print(
        f"converted {loaded.heads.num_heads} heads from {loaded.format} to {arguments.to}: "
        f"{arguments.output} ({size_bytes / 1e6:.1f} MB)",
        file=sys.stderr,
    )


def _as_json(loaded: "LoadedHeads") -> dict[str, object]:
    return {
        "path": str(loaded.path),
        "format": loaded.format,
        **dataclasses.asdict(loaded.facts),
        "dtype": _dtype(loaded),
        "num_parameters": loaded.num_parameters,
        "backbone": None if loaded.backbone is None else str(loaded.backbone),
        "adapter": None if loaded.adapter is None else str(loaded.adapter),
        "warnings": list(loaded.warnings),
    }


def _print_table(loaded: "LoadedHeads") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(loaded):
        table.add_row(name, escape(value))
    console = Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_FILES)
    console.print(table)


def _rows(loaded: "LoadedHeads") -> list[tuple[str, str]]:
    facts = loaded.facts
    unembedding = {
        "own": "own, one for each head",
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
        ("type", _dtype(loaded)),
        ("parameters", f"{loaded.num_parameters:,}"),
        ("base model", facts.base_model or "not stated"),
    ]
    if loaded.backbone is not None:
        rows.append(("backbone", f"beside the heads, {len(loaded.others)} tensors"))
    if loaded.adapter is not None:
        rows.append(("adapter", f"{len(loaded.others)} tensors beside the heads"))
    return rows + [("warning", text) for text in loaded.warnings]


def _dtype(loaded: "LoadedHeads") -> str:
    return str(loaded.dtype).removeprefix("torch.")
