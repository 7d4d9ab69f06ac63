"""What to install where a verb lacks a package."""

from collections.abc import Iterator
from contextlib import contextmanager

from medusa_trt.errors import MedusaError


@contextmanager
def require_extra(purpose: str, *extras: str) -> Iterator[None]:
    """Runs a block of imports.

    Args:
        purpose: what the packages are needed for, as "exporting".
        extras: the extras of medusa-trt that bring them; the user may choose one.

    Raises:
        MedusaError: a package is missing.
    """
    try:
        yield
    except ImportError as error:
        commands = " or ".join(f"pip install 'medusa-trt[{extra}]'" for extra in extras)
        raise MedusaError(f"{purpose} needs {error.name}: {commands}") from error
