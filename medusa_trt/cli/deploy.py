"""The command line's deployment: `medusa-trt deploy BUNDLE --kind jetson`."""

import argparse
import sys
from pathlib import Path

from medusa_trt.errors import MedusaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `deploy`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument("--kind", required=True, help="jetson, container or triton")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write the files (default: deploy-KIND)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Writes the files.

    Raises:
        MedusaError: whatever the user can cause.
    """
    try:
        from medusa_trt.export.deploy.deployment import deploy
    except ImportError as error:
        raise MedusaError(
            f"deploying needs {error.name}: pip install 'medusa-trt[export]'"
        ) from error
    from medusa_trt.runtime.bundle import Bundle

    output = arguments.output or Path(f"deploy-{arguments.kind}")
    files = deploy(
        Bundle.open(arguments.bundle), arguments.kind, output, overwrite=arguments.overwrite
    )
    for file in files:
        print(file)
    print(f"copy the bundle to {output / 'bundle'}", file=sys.stderr)
