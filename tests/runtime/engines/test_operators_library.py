"""Whether the operator library is of the checkout's sources, and has the wanted kernels."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import check_kernels, check_sources, find_library

pytestmark = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

SOURCES = Path(__file__).parents[3] / "native"


@pytest.fixture
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(find_library()))


def test_a_library_of_other_sources_is_refused(library: ctypes.CDLL, tmp_path: Path) -> None:
    check_sources(library, SOURCES)
    check_sources(library, tmp_path / "native")  # An installed package has no sources.
    shutil.copytree(SOURCES, tmp_path / "native")
    check_sources(library, tmp_path / "native")
    with (tmp_path / "native/kernels/amx.h").open("a") as file:
        file.write("// changed\n")
    with pytest.raises(EngineError, match="compile it again with make native"):
        check_sources(library, tmp_path / "native")


def test_a_library_of_before_the_check_is_refused() -> None:
    with pytest.raises(EngineError, match="compile it again with make native"):
        check_sources(ctypes.CDLL(None), SOURCES)


def test_kernels_that_do_not_run_here_are_refused(library: ctypes.CDLL) -> None:
    check_kernels(library, "")
    check_kernels(library, "portable")
    with pytest.raises(EngineError) as refused:
        check_kernels(library, "sse")
    message = str(refused.value)
    assert message.startswith("MEDUSA_TRT_KERNELS is 'sse': this processor runs ")
    assert "portable; choose one of them" in message


def test_a_session_refuses_unknown_kernels(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "medusa_trt", "generate", str(tiny_bundle.path), "hello"]
    environment = os.environ | {"MEDUSA_TRT_KERNELS": "sse"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: MEDUSA_TRT_KERNELS is 'sse'")
