"""Opening an ONNX file."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_session import make_session_options, open_session
from medusa_trt.runtime.session import MedusaSession


def test_a_file_is_opened_or_refused_by_name(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = make_session_options(onnxruntime)
    path = tiny_bundle.graph_path("reduce")
    session = open_session(onnxruntime, path, options, "CPUExecutionProvider")
    assert session.get_providers() == ["CPUExecutionProvider"]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot load .*broken\.onnx for CPUExecutionProvider"):
        open_session(onnxruntime, broken, options, "CPUExecutionProvider")


_FORKED = """
import os, signal, sys
from medusa_trt.errors import EngineError
from medusa_trt.runtime.session import GenerationOptions, MedusaSession

options = GenerationOptions(max_new_tokens=3)
session = MedusaSession(sys.argv[1], num_threads=2)
whole = session.generate([1, 2], options).token_ids
if (child := os.fork()) == 0:
    signal.alarm(60)  # ends a child that waits for ever
    try:
        session.generate([1, 2], options)
    except EngineError as error:
        assert "open a session in each process" in str(error)
        session.close()
        with MedusaSession(sys.argv[1]) as other:
            # As multiprocessing ends its children.
            os._exit(7 if other.generate([1, 2], options).token_ids == whole else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.generate([1, 2], options).token_ids == whole
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_open_a_session_and_can_close_the_old_one(
    tiny_bundle: Bundle,
) -> None:
    """onnxruntime's threads are not in a child, where closing a session hung."""
    run = [sys.executable, "-c", _FORKED, str(tiny_bundle.path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_ENDING = """
import os, signal, sys
from medusa_trt.runtime.session import GenerationOptions, MedusaSession

session = MedusaSession(sys.argv[1], num_threads=2)
session.generate([1, 2], GenerationOptions(max_new_tokens=3))
if (child := os.fork()) == 0:
    signal.alarm(60)  # ends a child that waits for ever
    print("from the child")
    END
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == int(sys.argv[2])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(7)", 7), ("sys.exit()", 0), ("session.close(); sys.exit(3)", 3), ("1 / 0", 1)],
)
def test_a_forked_process_ends_as_any_other(tiny_bundle: Bundle, end: str, code: int) -> None:
    """onnxruntime 1.31 waits for threads of the parent where its library is unloaded."""
    run = [sys.executable, "-c", _ENDING.replace("END", end), str(tiny_bundle.path), str(code)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "from the child\n"


def test_a_link_to_weights_elsewhere_is_named(bundle: Path, tmp_path: Path) -> None:
    weights, elsewhere = bundle / "weights.data", tmp_path / "elsewhere.data"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    with pytest.raises(EngineError) as refused:
        MedusaSession(bundle)
    assert str(refused.value).startswith(f"{weights} is a link to {elsewhere}: ONNX Runtime reads")
    (tmp_path / "link").symlink_to(bundle)
    weights.unlink()
    elsewhere.rename(weights)
    MedusaSession(tmp_path / "link").close()
