"""The KV cache in device memory against the one in host memory."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray
from support.stand_ins.fake_cuda import FakeCuda

from medusa_trt.runtime.engines.device.cache import DeviceCache
from medusa_trt.runtime.engines.device.memory import Cuda
from medusa_trt.runtime.engines.kv_cache import KVCache

LAYERS, HEADS, CAPACITY, DIM, SLOTS = 2, 3, 12, 4, 3


@pytest.mark.parametrize("in_place", [True, False])
def test_rows_move_as_in_host_memory(in_place: bool) -> None:
    cuda = Cuda(FakeCuda())
    cache = DeviceCache(
        cuda,
        num_layers=LAYERS,
        batch_size=SLOTS,
        num_kv_heads=HEADS,
        capacity=CAPACITY,
        head_dim=DIM,
        item_bytes=4,
        in_place=in_place,
    )
    cuda.synchronize()
    slab = _view(cache.addresses(0, "key")[0])
    host = KVCache(np.arange(slab.size, dtype=np.float32).reshape(slab.shape))
    slab[...] = host.slab
    both: tuple[KVCache | DeviceCache, ...] = host, cache
    for method, arguments in (
        ("commit", (1, 4, [0, 2, 5])),
        ("move", (0, 2, 7)),
        ("exchange", (0, 1, 9)),
    ):
        for rows in both:
            getattr(rows, method)(*arguments)
        cuda.synchronize()
        np.testing.assert_array_equal(slab, host.slab)
    source, target = cache.addresses(1, "value", first_slot=2)
    assert (source == target) == in_place
    cache.advance()
    assert cache.addresses(1, "value", first_slot=2) == (target, source)
    cuda.close()


def _view(address: int) -> NDArray[np.float32]:
    shape = LAYERS, 2, SLOTS, HEADS, CAPACITY, DIM
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)
