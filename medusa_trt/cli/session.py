"""The command line's engine options, the same for every verb that opens a bundle to generate."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from medusa_trt.runtime.session import MedusaSession


def add_session_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--backend`, `--threads` and `--max-length`."""
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="what runs the bundle: ort-cpu, ort-cuda, tensorrt or tensorrt-rtx "
        "(default: what it was exported for)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads for one step on the CPU (default: as many as physical cores)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="all prompts and replies together, in tokens (default: the bundle's limit)",
    )


def add_reply_limit(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-new-tokens`."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="limit on a reply, in tokens (default: what --max-length leaves)",
    )


def add_drafting_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--tree` and `--lookup-ngram`."""
    parser.add_argument(
        "--tree", help="draft tree, by name or file; plain: no drafting (default: the bundle's)"
    )
    parser.add_argument(
        "--lookup-ngram",
        type=int,
        default=GenerationOptions().lookup_ngram,
        metavar="N",
        help="where the last N tokens occurred before, draft what followed them; 0: never",
    )


def session_from_arguments(bundle: Path, arguments: argparse.Namespace) -> "MedusaSession":
    """Opens a bundle as the arguments ask.

    Raises:
        MedusaError: the bundle is damaged, or this machine lacks the backend.
    """
    # Only now, so that other verbs and wrong options do not wait for it.
    from medusa_trt.runtime.session import MedusaSession

    return MedusaSession(
        bundle,
        backend=arguments.backend,
        num_threads=arguments.threads,
        max_length=arguments.max_length,
    )
