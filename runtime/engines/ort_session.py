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


def _keep_sessions() -> None:
    """Keeps the parent's sessions: when they end, they wait for threads that a child lacks."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)


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
        raise EngineError(f"ONNX Runtime cannot load {path} for {provider}: {error}") from error
    _sessions.add(session)
    return session
