"""The operator library: the project's operators for ONNX Runtime, compiled with the package."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

from medusa_trt.errors import EngineError

DOMAIN = "medusa_trt"
"""ONNX domain of the operators."""

_LIBRARY = Path(__file__).resolve().parent / "_operators.so"

_SOURCES = Path(__file__).resolve().parents[2] / "native"
"""The operators' sources, which only a checkout of the repository has."""

_VARIABLE = "MEDUSA_TRT_KERNELS"


@cache
def find_library() -> Path | None:
    """Finds the compiled library; None if the package was installed without a compiler.

    Raises:
        EngineError: the library was compiled from other sources than the checkout has now, or the
            environment variable MEDUSA_TRT_KERNELS names kernels that do not run here.
    """
    if not _LIBRARY.is_file():
        return None
    library = ctypes.CDLL(str(_LIBRARY))
    check_sources(library, _SOURCES)
    check_kernels(library, os.environ.get(_VARIABLE, ""))
    return _LIBRARY


def check_sources(library: ctypes.CDLL, sources: Path) -> None:
    """Checks that a library was compiled from the files of a folder, if there is one.

    Raises:
        EngineError: the files were changed afterwards, as by a pull.
    """
    if not sources.is_dir():
        return
    files = sorted(sources.rglob("*.[chi]*"))
    digest = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    # A library of before this check has no such function.
    if not hasattr(library, "medusa_trt_sources") or _call(library, "sources") != digest:
        raise EngineError(
            f"the operator library was compiled from other sources than {sources} has now: compile "
            "it again with make native (python setup.py build_ext --inplace --force)"
        )


def check_kernels(library: ctypes.CDLL, wanted: str) -> None:
    """Checks that a library has the kernels that the user wants; an empty name wants the fastest.

    Raises:
        EngineError: it has no such kernels, or this processor does not run them.
    """
    names = _call(library, "kernel_names").split()
    if wanted and wanted not in names:
        raise EngineError(
            f"{_VARIABLE} is {wanted!r}: this processor runs {', '.join(names)}; choose one of "
            "them, or unset the variable"
        )


def _call(library: ctypes.CDLL, name: str) -> str:
    """Calls a function of native/ops.cpp that returns a text."""
    function = library[f"medusa_trt_{name}"]
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def require_library() -> Path:
    """Returns the path of the library.

    Raises:
        EngineError: the library was not built, or cannot be used; see `find_library`.
    """
    path = find_library()
    if path is None:
        raise EngineError(
            "this bundle needs the operator library, which was not built: install a C++ compiler "
            "and medusa-trt again, or export the model with --precision fp32"
        )
    return path


@cache
def read_kernels_name() -> str:
    """Reads which instruction set the operators use on this machine, as "avx512-vnni"."""
    return _call(ctypes.CDLL(str(require_library())), "kernels")


@cache
def load_function(name: str) -> Callable[[ctypes.c_void_p], None] | None:
    """Loads a function of native/ops.cpp that takes one block of memory.

    Args:
        name: "commit" or "grow".

    Returns:
        None if the library was not built.
    """
    path = find_library()
    if path is None:
        return None
    # The call is too short to release the GIL for other threads, as `CDLL` would do.
    function: Callable[[ctypes.c_void_p], None] = ctypes.PyDLL(str(path))[f"medusa_trt_{name}"]
    function.restype = None  # type: ignore[attr-defined]
    return function
