"""Memory, copies and captured graphs, on a stand-in of CUDA's runtime."""

import numpy as np
import pytest
from support.stand_ins.fake_cuda import FakeCuda

from medusa_trt.errors import EngineError
from medusa_trt.runtime.engines.device.memory import Cuda, close_on_error


def test_copies_and_a_captured_graph() -> None:
    runtime = FakeCuda(capability=(9, 0))
    cuda = Cuda(runtime)
    assert cuda.compute_capability == "9.0"
    array = cuda.allocate_pinned((2, 3), np.int64)
    result = cuda.allocate_pinned((2, 3), np.int64)
    assert not array.any()
    address = cuda.allocate(array.nbytes)

    def copy() -> None:
        cuda.upload(address, array)
        cuda.download(result, address)

    graph = cuda.capture(copy)
    for number in (4, 5):
        array[...] = number
        cuda.launch(graph)
        cuda.synchronize()
        assert (result == number).all()
    cuda.free_graph(graph)
    cuda.free(address)
    cuda.free_pinned(result)
    cuda.close()
    assert not runtime.memory and not runtime.streams


def test_errors_say_what_to_do() -> None:
    with pytest.raises(EngineError, match="CUDA finds no GPU"):
        Cuda(FakeCuda(num_devices=0))
    runtime = FakeCuda()
    cuda = Cuda(runtime)
    runtime.room_bytes = 10
    with pytest.raises(EngineError, match=r"cudaMalloc: .*the memory is full: lower max_length"):
        cuda.allocate(100)


def test_a_block_that_fails_closes_the_device() -> None:
    runtime = FakeCuda()
    with pytest.raises(ValueError, match="failed"), close_on_error(Cuda(runtime)) as cuda:
        cuda.allocate(10)
        raise ValueError("failed")
    assert not runtime.memory and not runtime.streams
