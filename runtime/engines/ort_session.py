"""Sessions of ONNX Runtime, on the CPU and on CUDA."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medusa_trt.errors import EngineError

BFLOAT16 = 16
"""ONNX's number of the type, which numpy does not have."""


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
        return onnxruntime.InferenceSession(
            os.fspath(path),
            options,
            providers=[(provider, dict(provider_options or {}))],
            enable_fallback=False,
        )
    except Exception as error:  # ONNX Runtime raises many pybind classes with no common base
        raise EngineError(f"ONNX Runtime cannot load {path} for {provider}: {error}") from error
