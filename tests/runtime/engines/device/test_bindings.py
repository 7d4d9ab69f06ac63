"""Bindings of graphs: what each run copies, what is recorded, and what is freed."""

from typing import Any

import numpy as np
import pytest
from support.stand_ins.fake_cuda import FakeCuda

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.device.bindings import Bindings
from medusa_trt.runtime.engines.device.memory import Cuda


class Copying:
    """An executor whose graphs copy their input twice; also the executable of each."""

    is_capturable = True

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.num_open, self.is_closed = cuda, 0, False
        self._addresses: dict[str, int] = {}

    def open(self, graph: str, tree: object) -> "Copying":
        self.num_open += 1
        return self

    def takes(self, name: str) -> bool:
        return True

    def bind_input(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self._addresses[name] = address

    bind_host_input = bind_output = bind_input

    def enqueue(self) -> None:
        target, source = self._addresses["y"], self._addresses["x"]
        for place in (0, 8):
            self._cuda.copy_blocks(
                target + place,
                source,
                size_bytes=8,
                num_inner=1,
                inner_stride=8,
                num_outer=1,
                outer_stride=8,
            )

    def close(self) -> None:
        self.is_closed = True


def bind(bindings: Bindings, key: Any) -> None:
    with bindings.open((key,), "graph") as bound:
        bindings.bind_input(bound, "x", np.zeros(1, np.int64), every_run=True)
        bindings.bind_output(bound, "y", (2,), "int64", download=True)


def test_every_run_reads_its_inputs_and_the_second_is_recorded() -> None:
    runtime = FakeCuda()
    cuda = Cuda(runtime)
    bindings = Bindings(cuda, Copying(cuda))
    bind(bindings, "a")
    bound = bindings.get(("a",))
    assert bound is not None and bindings.get(("b",)) is None
    for number in (3, 4, 5):
        bound.inputs["x"][:] = number
        assert bindings.run(bound)["y"].tolist() == [number] * 2
    assert runtime.num_launches == 2
    bindings.close()
    bindings.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        _ = bindings.executor
    cuda.close()
    assert not runtime.memory


def test_the_binding_unused_for_longest_is_freed() -> None:
    runtime = FakeCuda()
    cuda = Cuda(runtime)
    executor = Copying(cuda)
    bindings = Bindings(cuda, executor)
    for number in range(16):
        bind(bindings, number)
    assert bindings.get((0,)) is not None
    num_blocks = len(runtime.memory)
    bind(bindings, 16)
    assert bindings.get((1,)) is None and bindings.get((0,)) is not None
    assert len(runtime.memory) == num_blocks and executor.num_open == 17


def test_a_binding_that_fails_leaves_nothing() -> None:
    runtime = FakeCuda()
    cuda = Cuda(runtime)
    bindings = Bindings(cuda, Copying(cuda))
    with pytest.raises(ValueError, match="failed"), bindings.open(("a",), "graph") as bound:
        bindings.bind_input(bound, "x", np.zeros(1, np.int64))
        raise ValueError("failed")
    assert not runtime.memory and bindings.get(("a",)) is None
