"""The command line's comparison: `medusa-trt verify BUNDLE --against MODEL`."""

import argparse
from pathlib import Path

from medusa_trt.errors import MedusaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `verify`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--against",
        required=True,
        metavar="MODEL",
        help="the model: alias, folder, .gguf file or hub id",
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Compares logits on text and on a tree.

    Raises:
        MedusaError: they differ by more than the bundle's precision allows, or cannot be compared.
    """
    try:
        from medusa_trt.export.comparison.check import check_bundle
    except ImportError as error:
        raise MedusaError(
            f"comparing needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error
    for line in check_bundle(arguments.bundle, arguments.against):
        print(line, flush=True)
