"""The library's attention under a tree mask, against a slow reference and plain decoding."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto
from support.one_operator import kernels_here, run_bound, session
from support.reference.attention import attended, rotated

from medusa_trt.runtime.engines.operators import find_library, read_kernels_name

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

LOWEST = np.finfo(np.float32).min
SCALE = 0.25


@dataclass(frozen=True)
class Limits:
    """What limits attention, as attributes of the operator: 0 for no limit.

    Attributes:
        window: number of positions up to its own that a node sees.
        chunk: number of positions in a chunk; a node sees those of its own chunk.
        softcap: bound of the scores.
        sinks: whether each query head has a score that joins the sum of weights.
    """

    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False

    def first(self, position: int) -> int:
        """The first position that a node sees."""
        seen = [
            other
            for other in range(position + 1)
            if (not self.window or other > position - self.window)
            and (not self.chunk or other // self.chunk == position // self.chunk)
        ]
        return seen[0]


@dataclass(frozen=True)
class Case:
    """Inputs of the operator.

    Attributes:
        states: (B, T, (heads + 2 * kv_heads) * D) queries, keys and values of the new nodes.
        cache: (2, B, kv_heads, capacity, D) bfloat16 keys and values.
        past: (B,) valid rows of the cache.
        offsets: (T,) depths; (B, T) where each sequence has its own tree.
        sees: (T, T) what each node sees of the others; (B, T, T) likewise.
        tables: (positions, rotary_dim / 2) cosines and sines.
        heads: of queries, and of keys and values.
        limits: of what a node sees, and of its scores.
        sinks: (heads,) scores, used where `limits` say so.
    """

    states: Array
    cache: Array
    past: list[int]
    offsets: Array | list[int]
    sees: Array
    tables: tuple[Array, Array]
    heads: tuple[int, int]
    limits: Limits
    sinks: Array


def random_tree(rng: np.random.Generator, nodes: int, chain: bool) -> Array:
    """What each node of a random tree, or of a chain, sees of the others."""
    sees = np.eye(nodes, dtype=bool)
    for node in range(1, nodes):
        sees[node] |= sees[node - 1 if chain else int(rng.integers(0, node))]
    return sees


def random_case(
    seed: int,
    *,
    batch: int,
    nodes: int,
    heads: tuple[int, int],
    size: int,
    capacity: int = 120,
    chain: bool = False,
    tree_each: bool = False,
    limits: Limits = Limits(),
) -> Case:
    """A random tree, or one for each sequence, over ragged sequences."""
    rng = np.random.default_rng(seed)
    width = (heads[0] + 2 * heads[1]) * size
    trees = [random_tree(rng, nodes, chain) for _ in range(batch if tree_each else 1)]
    sees = np.stack(trees) if tree_each else trees[0]
    angles = rng.normal(size=(capacity + 64, size // 4))
    return Case(
        states=rng.normal(size=(batch, nodes, width)).astype(np.float32),
        cache=rng.normal(size=(2, batch, heads[1], capacity, size)).astype(bfloat16),
        past=rng.integers(0, capacity - nodes, batch, endpoint=True).tolist(),
        offsets=sees.sum(-1) - 1,
        sees=sees,
        tables=(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)),
        heads=heads,
        limits=limits,
        sinks=rng.normal(size=heads[0]).astype(np.float32),
    )


@lru_cache(maxsize=4)
def make_operator(
    heads: tuple[int, int], limits: Limits, kinds: tuple[tuple[str, str, int], ...]
) -> ort.InferenceSession:
    """The operator alone; `kinds` holds name, type and rank of each input that it gets."""
    feeds = {name: np.empty((0,) * rank, kind) for name, kind, rank in kinds}
    places = ["query", "key", "value", "past_key", "past_value", "past", "offsets", "mask"]
    places = [name if name in feeds else "" for name in (*places, "cos", "sin", "sinks")]
    types: dict[str, int] = {
        "out": TensorProto.FLOAT,
        "new_key": TensorProto.BFLOAT16,
        "new_value": TensorProto.BFLOAT16,
    }
    attributes = {name: value for name, value in asdict(limits).items() if value}
    attributes.pop("sinks", None)
    return session(
        "TreeAttention",
        places if places[-1] else places[:-1],
        types,
        feeds,
        {},
        num_heads=heads[0],
        kv_num_heads=heads[1],
        scale=SCALE,
        **attributes,
    )


def attention(case: Case, *, packed: bool = True, in_place: bool = True) -> tuple[Array, Array]:
    """Runs the operator: (B, T, heads * D) what was attended to, and the new cache."""
    num_heads, kv_heads = case.heads
    size = case.cache.shape[-1]
    feeds: dict[str, Array] = {"query": case.states}
    if not packed:
        cuts = [num_heads * size, (num_heads + kv_heads) * size]
        query, key, value = (np.ascontiguousarray(x) for x in np.split(case.states, cuts, axis=2))
        feeds = {"query": query, "key": key, "value": value}
    before = case.cache.copy()
    cache = before if in_place else np.zeros_like(before)
    feeds |= {
        "past_key": before[0],
        "past_value": before[1],
        "past": np.array(case.past, np.int64),
        "offsets": np.array(case.offsets, np.int64),
        "mask": np.where(case.sees, 0, LOWEST).astype(np.float32),
        "cos": case.tables[0],
        "sin": case.tables[1],
    }
    if case.limits.sinks:
        feeds["sinks"] = case.sinks
    kinds = tuple((name, array.dtype.name, array.ndim) for name, array in feeds.items())
    model = make_operator(case.heads, case.limits, kinds)
    out = np.zeros((*case.states.shape[:2], num_heads * size), np.float32)
    run_bound(model, feeds, {"out": out, "new_key": cache[0], "new_value": cache[1]})
    return out, cache


HEADS = st.sampled_from([(1, 1), (3, 1), (4, 2), (9, 3), (20, 1)])

LIMITS = st.builds(
    Limits,
    window=st.sampled_from([0, 0, 1, 2, 5, 40, 1000]),
    chunk=st.sampled_from([0, 0, 0, 1, 3, 50, 1000]),
    softcap=st.sampled_from([0.0, 0.5, 30.0]),
    sinks=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 12),
    HEADS,
    st.sampled_from([4, 20, 32, 64, 96, 160]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    LIMITS,
)
def test_a_node_attends_to_the_past_and_its_ancestors(
    seed: int,
    batch: int,
    nodes: int,
    heads: tuple[int, int],
    size: int,
    packed: bool,
    in_place: bool,
    chain: bool,
    tree_each: bool,
    limits: Limits,
) -> None:
    case = random_case(
        seed,
        batch=batch,
        nodes=nodes,
        heads=heads,
        size=size,
        chain=chain,
        tree_each=tree_each,
        limits=limits,
    )
    sees = np.broadcast_to(case.sees, (batch, nodes, nodes))
    offsets = np.broadcast_to(case.offsets, (batch, nodes))
    out, cache = attention(case, packed=packed, in_place=in_place)
    num_heads, kv_heads = heads
    expected = case.cache.astype(np.float64)
    split = case.states.reshape(batch, nodes, -1, size)
    for b in range(batch):
        for node in range(nodes):
            row, position = case.past[b] + node, case.past[b] + offsets[b, node]
            for head in range(kv_heads):
                key = split[b, node, num_heads + head]
                expected[0, b, head, row] = rotated(key, position, *case.tables)
                expected[1, b, head, row] = split[b, node, num_heads + kv_heads + head]
    actual = cache.astype(np.float64)
    assert np.allclose(actual, expected, rtol=2**-8, atol=1e-6)
    unchanged = np.ones(case.cache.shape, bool)
    for b in range(batch):
        unchanged[:, b, :, case.past[b] : case.past[b] + nodes] = False
    assert np.array_equal(cache[unchanged], case.cache[unchanged])
    # The tiles round weights to bfloat16.
    limit = 8e-3 if read_kernels_name() == "amx" and size % 32 == 0 else 2e-5
    for b in range(batch):
        for node in range(nodes):
            path = [*range(case.past[b]), *(case.past[b] + np.flatnonzero(sees[b, node]))]
            position = case.past[b] + offsets[b, node]
            allowed = path[limits.first(position) :]
            for head in range(num_heads):
                query = rotated(split[b, node, head], position, *case.tables)
                kv = head * kv_heads // num_heads
                reference = attended(
                    query,
                    actual[0, b, kv],
                    actual[1, b, kv],
                    allowed,
                    SCALE,
                    limits.softcap,
                    float(case.sinks[head]) if limits.sinks else None,
                )
                part = out[b, node, head * size : (head + 1) * size]
                assert np.allclose(part, reference, atol=limit)


def test_the_first_token_attends_to_itself_alone() -> None:
    case = random_case(1, batch=1, nodes=1, heads=(2, 1), size=128)
    out, _ = attention(replace(case, past=[0]))
    value = case.states[0, 0, -128:].astype(bfloat16).astype(np.float32)
    assert np.allclose(out[0, 0], np.tile(value, 2), atol=1e-6)


def check_paths(past: int, size: int, seed: int, limits: Limits = Limits()) -> None:
    """Every path of a random tree gives the bits of decoding its tokens one by one."""
    case = random_case(seed, batch=1, nodes=12, heads=(9, 3), size=size, limits=limits)
    case = replace(case, past=[past])
    whole, _ = attention(case)
    leaves = [node for node in range(12) if case.sees[:, node].sum() == 1]
    for leaf in leaves:
        plain_cache = case.cache
        for depth, node in enumerate(np.flatnonzero(case.sees[leaf])):
            one = replace(
                case,
                states=case.states[:, node : node + 1],
                cache=plain_cache,
                past=[past + depth],
                offsets=[0],
                sees=np.ones((1, 1), bool),
            )
            out, plain_cache = attention(one)
            assert np.array_equal(out[0, 0], whole[0, node]), (past, size, seed, node, limits)


def check_all_paths() -> None:
    """Pasts around every block's end, for the kernels of this process."""
    for seed, past in enumerate([0, 1, 15, 26, 29, 30, 31, 32, 33, 63, 64, 100]):
        check_paths(past, (64, 64, 32, 96, 20)[seed % 5], seed)
        window, chunk = (1, 2, 3, 20, 64, 0, 0)[seed % 7], (0, 0, 50, 0, 4)[seed % 5]
        check_paths(past, 64, seed, Limits(window, chunk, (0.0, 5.0)[seed % 2], seed % 3 == 0))


def test_a_nodes_result_does_not_depend_on_where_its_path_lies() -> None:
    """The bits are those of plain decoding, whatever stands between a node and its ancestors."""
    names = kernels_here()
    assert "portable" in names and read_kernels_name() in names
    for name in names:
        environment = {**os.environ, "MEDUSA_TRT_KERNELS": name}
        environment["PYTHONPATH"] = os.fspath(Path(__file__).parents[2])
        subprocess.run([sys.executable, __file__], env=environment, check=True)


@pytest.mark.parametrize("limits", [Limits(), Limits(7), Limits(100), Limits(70, 45, 5.0, True)])
def test_a_chain_gives_the_bits_of_its_tokens_one_by_one(limits: Limits) -> None:
    """As does a prefill that is cut into chunks."""
    case = random_case(
        5, batch=1, nodes=40, heads=(9, 3), size=64, chain=True, capacity=200, limits=limits
    )
    case = replace(case, past=[137])
    whole, whole_cache = attention(case)
    cache = case.cache
    for start, end in ((0, 1), (1, 8), (8, 30), (30, 40)):
        part = replace(
            case,
            states=np.ascontiguousarray(case.states[:, start:end]),
            cache=cache,
            past=[137 + start],
            offsets=list(range(end - start)),
            sees=np.tri(end - start, dtype=bool),
        )
        out, cache = attention(part)
        assert np.array_equal(out[0], whole[0, start:end])
    assert np.array_equal(cache.view(np.uint16), whole_cache.view(np.uint16))


def test_rows_after_the_last_one_are_never_read() -> None:
    case = random_case(9, batch=1, nodes=5, heads=(3, 1), size=64)
    case = replace(case, past=[41])
    spoilt = case.cache.copy()
    spoilt[:, :, :, 46:] = np.nan
    assert np.array_equal(
        attention(case)[0], attention(replace(case, cache=spoilt))[0], equal_nan=False
    )


def test_rows_before_the_window_are_never_read() -> None:
    case = random_case(9, batch=1, nodes=5, heads=(3, 1), size=64, capacity=300, limits=Limits(70))
    case = replace(case, past=[250])
    spoilt = case.cache.copy()
    spoilt[:, :, :, : 250 - 70 - 64] = np.nan
    assert np.array_equal(
        attention(case)[0], attention(replace(case, cache=spoilt))[0], equal_nan=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past": [118]}, "the nodes do not fit the cache"),
        ({"past": [-1]}, "the nodes do not fit the cache"),
        ({"offsets": [0, 179, 180]}, "a position is outside the rotary table"),
        ({"offsets": [0, 1]}, "inputs differ in shape"),
        ({"heads": (4, 1)}, "inputs differ in shape"),
        ({"past": [0, 0]}, "inputs differ in shape"),
        (
            {"limits": Limits(sinks=True), "sinks": np.zeros(2, np.float32)},
            "inputs differ in shape",
        ),
    ],
)
def test_attention_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    case = replace(random_case(3, batch=1, nodes=3, heads=(3, 1), size=16), past=[5])
    with pytest.raises(Exception, match=message):
        attention(replace(case, **change))


if __name__ == "__main__":
    check_all_paths()
