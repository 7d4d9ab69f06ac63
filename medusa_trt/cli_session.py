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
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one step on the CPU")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="all prompts and replies together, in tokens"
    )


def add_drafting_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--tree` and `--lookup-ngram`."""
    parser.add_argument("--tree", help="another tree than the bundle's; plain: no drafting")
    parser.add_argument(
        "--lookup-ngram",
        type=int,
        default=GenerationOptions().lookup_ngram,
        metavar="N",
        help="where the last N tokens occurred before, draft what followed them; 0: never "
        "(default: %(default)s)",
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
