"""The threads of a chain's layers, in a build that makes some of them late or short of memory.

What threads do wrong shows once in ten thousand calls, so each place where one may be overtaken is
marked in the code (`MEDUSA_TEST_POINT`), and this build lets some sleep there (`late_threads.h`).
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from support.graphs.chain_models import Floats, Layer, feeds_of, model_of, opened

from medusa_trt.export.passes.chain_linears import ChainLinearsPass

NATIVE = Path(__file__).parents[3] / "native"
COMPILER = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")

NUM_ROWS = 6
MIXED = tuple(Layer(1536 if i % 2 else 576, source=i - 1) for i in range(8))
"""Layers whose rows each thread quantizes for itself, in turn with ones whose rows all share."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator library with its marks, built with little optimization."""
    folder = tmp_path_factory.mktemp("late")
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w"]

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        marks = ["-include", str(NATIVE.parent / "tests/support/late_threads.h")]
        own = marks if source.name == "ops.cpp" else []
        subprocess.run([*COMPILER, *flags, *own, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted(NATIVE.rglob("*.cpp"))))
    path = folder / "operators.so"
    subprocess.run([*COMPILER, "-shared", *objects, "-o", str(path), "-pthread"], check=True)
    return path


class Trouble:
    """Sets what happens at one of the marked places."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.set_trouble.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint64,
            ctypes.c_int64,
            ctypes.c_bool,
        ]
        self._library.num_visits.restype = ctypes.c_uint64

    def late(self, point: str, one_in: int) -> None:
        """Once in so many visits a thread sleeps, while others do some layers."""
        self._library.set_trouble(point.encode(), one_in, 200, False)

    def late_helpers(self, point: str) -> None:
        """Each visit costs helpers some milliseconds; the caller is slow enough to get help."""
        self._library.set_trouble(point.encode(), 1, 5_000, True)

    def short(self, one_in: int) -> None:
        """Once in so many requests there is no memory."""
        self._library.set_trouble(b"allocate", one_in, -1, False)

    def none(self) -> None:
        self._library.set_trouble(b"", 0, 0, False)

    @property
    def visits(self) -> int:
        """How often the places that were set have been passed."""
        return int(self._library.num_visits())


@pytest.fixture
def trouble(library: Path) -> Iterator[Trouble]:
    """No trouble before and after each test."""
    trouble = Trouble(library)
    trouble.none()
    yield trouble
    trouble.none()


@pytest.fixture(scope="module", params=[2, 4])
def run(library: Path, request: pytest.FixtureRequest) -> Callable[[], Floats]:
    """Runs the chain on so many threads."""
    model = model_of(MIXED, 576, {7})
    ChainLinearsPass()(model)
    assert [node.op_type for node in model.graph] == ["LinearChain"]
    session, feeds = opened(model, request.param, library), feeds_of(model, NUM_ROWS)
    return lambda: session.run(None, feeds)[0]


@pytest.fixture(scope="module")
def expected(library: Path) -> Floats:
    """What the layers give one by one."""
    model = model_of(MIXED, 576, {7})
    result: Floats = opened(model, 1, library).run(None, feeds_of(model, NUM_ROWS))[0]
    return result


POINTS = [("enter", 16), ("quantize alone", 2), ("quantize", 16), ("multiply", 64)]


@pytest.mark.parametrize(("point", "one_in"), POINTS)
def test_late_threads_change_nothing(
    run: Callable[[], Floats], expected: Floats, trouble: Trouble, point: str, one_in: int
) -> None:
    trouble.late(point, one_in)
    before = trouble.visits
    for _ in range(200):
        np.testing.assert_array_equal(run(), expected)
    assert trouble.visits - before >= 200


@pytest.mark.parametrize(("point", "one_in"), POINTS)
def test_late_threads_of_several_calls_change_nothing(
    run: Callable[[], Floats], expected: Floats, trouble: Trouble, point: str, one_in: int
) -> None:
    trouble.late(point, one_in)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: run(), range(100)):
            np.testing.assert_array_equal(result, expected)


def test_helpers_that_do_not_run_are_asked_less_often(
    library: Path, expected: Floats, trouble: Trouble
) -> None:
    model = model_of(MIXED, 576, {7})
    ChainLinearsPass()(model)
    session, feeds = opened(model, 2, library), feeds_of(model, NUM_ROWS)
    trouble.late_helpers("multiply")
    num_helped = 0
    for _ in range(40):
        before = trouble.visits
        np.testing.assert_array_equal(session.run(None, feeds)[0], expected)
        num_helped += trouble.visits > before
    assert num_helped < 30


def test_a_thread_without_memory_fails_its_call_only(
    run: Callable[[], Floats], expected: Floats, trouble: Trouble
) -> None:
    trouble.short(16)
    num_failed = 0
    for _ in range(200):
        try:
            np.testing.assert_array_equal(run(), expected)
        except Fail as error:
            assert "bad_alloc" in str(error)
            num_failed += 1
    assert 0 < num_failed < 200
    trouble.none()
    np.testing.assert_array_equal(run(), expected)
