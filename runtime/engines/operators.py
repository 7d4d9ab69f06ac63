"""The operator library: our own operators for ONNX Runtime, compiled with the package."""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from medusa_trt.errors import EngineError

DOMAIN = "medusa_trt"
"""The operators' ONNX domain."""

_NAME = "_operators"


@cache
def library_path() -> Path | None:
    """The compiled library, or None where the package was installed without a compiler."""
    folder = Path(__file__).resolve().parent
    paths = (folder / f"{_NAME}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def required_library() -> Path:
    """The library's path.

    Raises:
        EngineError: it was not built.
    """
    path = library_path()
    if path is None:
        raise EngineError(
            "this bundle needs the operator library, which was not built: install a C++ compiler "
            "and medusa-trt again, or export the model with --precision fp32"
        )
    return path


@cache
def kernels_name() -> str:
    """The instruction set that the operators use on this machine, as in "avx512-vnni"."""
    function = ctypes.CDLL(str(required_library())).medusa_trt_kernels
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


@cache
def commit_function() -> Callable[[ctypes.c_void_p], None] | None:
    """`medusa_trt_commit` of native/ops.cpp; None where the library was not built."""
    path = library_path()
    if path is None:
        return None
    function = ctypes.PyDLL(str(path)).medusa_trt_commit  # too short to let other threads run
    function.restype = None
    return function
