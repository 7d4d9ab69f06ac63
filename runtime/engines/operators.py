"""The operator library: the project's operators for ONNX Runtime, compiled with the package."""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from medusa_trt.errors import EngineError

DOMAIN = "medusa_trt"
"""ONNX domain of the operators."""

_NAME = "_operators"


@cache
def find_library() -> Path | None:
    """Finds the compiled library; None if the package was installed without a compiler."""
    folder = Path(__file__).resolve().parent
    paths = (folder / f"{_NAME}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def require_library() -> Path:
    """Returns the path of the library.

    Raises:
        EngineError: the library was not built.
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
    function = ctypes.CDLL(str(require_library())).medusa_trt_kernels
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


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
