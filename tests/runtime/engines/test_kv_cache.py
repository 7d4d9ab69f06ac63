"""The KV cache on the host against copies by numpy."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.strategies import medusa_trees

from medusa_trt.runtime.engines import kv_cache
from medusa_trt.runtime.engines.kv_cache import KVCache
from medusa_trt.tree_configs import MedusaTree


@pytest.mark.parametrize("native", [True, False])
@given(tree=medusa_trees(), past_length=st.integers(0, 20), data=st.data())
def test_commit_moves_the_accepted_rows_together(
    native: bool, tree: MedusaTree, past_length: int, data: st.DataObject
) -> None:
    end = data.draw(st.integers(0, tree.num_nodes - 1))
    nodes = np.flatnonzero(tree.attn_mask[end]).tolist()
    slot, num_heads = data.draw(st.sampled_from([(0, 1), (1, 3), (2, 2)]))
    spare, head_dim = data.draw(st.sampled_from([(0, 3), (0, 64), (2, 64)]))
    capacity = past_length + tree.num_nodes + spare
    slab = np.random.default_rng(0).normal(size=(2, 2, 3, num_heads, capacity, head_dim))
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(kv_cache, "load_function", lambda _: None)
        cache = KVCache(slab.astype(np.float32))
    cache.commit(slot, past_length, nodes)
    expected = slab.astype(np.float32)
    for row, node in enumerate(nodes):
        moved = slab[:, :, slot, :, past_length + node]
        expected[:, :, slot, :, past_length + row] = moved
    assert np.array_equal(cache.slab, expected)


def test_a_path_longer_than_the_native_commit_takes_is_moved() -> None:
    nodes = list(range(0, 140, 2))
    slab = np.arange(150 * 4, dtype=np.float32).reshape(1, 1, 1, 1, 150, 4)
    cache = KVCache(slab.copy())
    cache.commit(0, 5, nodes)
    assert np.array_equal(cache.slab[0, 0, 0, 0, 5:75], slab[0, 0, 0, 0, 5:145:2])


def test_layers_of_the_cache_are_views_of_the_slab() -> None:
    cache = KVCache.zeros(num_layers=3, num_kv_heads=2, capacity=8, head_dim=4, dtype="float32")
    cache.layer(1, "value")[...] = 1
    assert cache.slab[1, 1].sum() == cache.slab.sum() == 2 * 8 * 4
    assert cache.layer(2, "key").flags.c_contiguous


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system has no smaps")
def test_only_rows_in_use_take_memory() -> None:
    # numpy asks for pages of 2 MiB, with which the first token takes nearly the whole cache.
    cache = KVCache.zeros(
        num_layers=8, batch_size=1, num_kv_heads=4, capacity=4096, head_dim=64, dtype="float32"
    )
    cache.slab[:, :, :, :, :8] = 1
    assert cache.slab.nbytes == 64 << 20 and count_resident_bytes(cache.slab) < 2 << 20


def count_resident_bytes(array: NDArray[np.generic]) -> int:
    """Counts the bytes of the memory that an array lies in, as far as they were ever used."""
    address, is_inside, num_bytes = array.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(span[1], 16) < address + array.nbytes and address < int(span[2], 16)
        elif is_inside and line.startswith("Rss:"):
            num_bytes += int(line.split()[1]) << 10
    return num_bytes
