"""Sessions of ONNX Runtime, on the CPU and on CUDA."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from medusa_trt.errors import EngineError

BFLOAT16 = 16
"""ONNX's number of the type, which numpy does not have."""

_sessions: WeakSet[Any] = WeakSet()
"""The sessions of this process and, after a fork, of its parent."""


def _prepare_child() -> None:
    """Keeps a forked child from waiting for threads that only its parent has.

    ONNX Runtime waits for them when a session of the parent is freed, and when its library is
    unloaded at the end of the process.
    """
    if not _sessions:
        return
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # In glibc.
        # It is called with the exit code when Python has ended, before libraries are unloaded.
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_prepare_child)


def check_process(process_id: int) -> None:
    """Checks that this process opened a session.

    Raises:
        EngineError: its parent did, whose threads it lacks.
    """
    if os.getpid() != process_id:
        raise EngineError(
            "the session was opened before this process was forked, and its threads are not here: "
            "open a session in each process"
        )


def make_session_options(onnxruntime: Any) -> Any:
    """Makes the session options that all engines use; only errors are logged."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return options


def open_session(
    onnxruntime: Any,
    path: Path,
    options: Any,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """Loads an ONNX file for one execution provider.

    Args:
        onnxruntime: the module.
        path: the ONNX file.
        options: see `make_session_options`.
        provider: name of the execution provider.
        provider_options: its settings.

    Raises:
        EngineError: ONNX Runtime does not accept the file.
    """
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path),
            options,
            providers=[(provider, dict(provider_options or {}))],
            enable_fallback=False,
        )
    except Exception as error:  # ONNX Runtime raises many pybind classes with no common base
        if "escapes model directory" in str(error):
            links = [f"{file} is a link to {file.resolve()}" for file in _list_links(path.parent)]
            raise EngineError(
                f"{', '.join(links)}: ONNX Runtime reads no weights outside the bundle's folder, "
                "so put the file itself there, or use a link to the whole folder"
            ) from error
        raise EngineError(f"ONNX Runtime cannot load {path} for {provider}: {error}") from error
    _sessions.add(session)
    return session


def _list_links(folder: Path) -> list[Path]:
    """Lists the links of a folder that lead out of it."""
    links = sorted(file for file in folder.iterdir() if file.is_symlink())
    return [file for file in links if not file.resolve().is_relative_to(folder.resolve())]
