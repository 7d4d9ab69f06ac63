"""Opening an ONNX file."""

from pathlib import Path

import onnxruntime
import pytest

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_session import make_session_options, open_session


def test_a_file_is_opened_or_refused_by_name(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = make_session_options(onnxruntime)
    path = tiny_bundle.graph_path("reduce")
    session = open_session(onnxruntime, path, options, "CPUExecutionProvider")
    assert session.get_providers() == ["CPUExecutionProvider"]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot load .*broken\.onnx for CPUExecutionProvider"):
        open_session(onnxruntime, broken, options, "CPUExecutionProvider")
