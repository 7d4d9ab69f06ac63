"""The operator library against slow references, on every instruction set that is here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from reference.linear import attended, quantized_rows, rms_norm, rotated, silu

from medusa_trt.export.quantize import (
    BLOCK_SIZES,
    QuantizedWeight,
    dequantized_weight,
    quantized_weight,
)
from medusa_trt.runtime.operators import DOMAIN, kernels_name, library_path, required_library

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(library_path() is None, reason="built without a C++ compiler")

EPSILON = 1e-5
KERNELS = ("portable", "avx2", "avx-vnni", "avx512-vnni", "amx")


def session(
    op_type: str,
    inputs: list[str],
    outputs: dict[str, int],
    feeds: dict[str, Array],
    constants: dict[str, Array],
    **attributes: Any,
) -> ort.InferenceSession:
    """One node as a model; `outputs` gives each output's element type."""
    node = helper.make_node(op_type, inputs, list(outputs), domain=DOMAIN, **attributes)
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
        )
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(
        [node],
        "one",
        values,
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.fspath(required_library()))
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def linear(
    x: Array,
    quantized: QuantizedWeight,
    num_outputs: int,
    *,
    activation: int = 0,
    gated: bool = False,
    norm: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
) -> Array:
    """Runs the operator."""
    optional = {"norm": norm, "bias": bias, "residual": residual}
    names = [name if array is not None else "" for name, array in optional.items()]
    constants = {name: array for name, array in optional.items() if array is not None}
    model = session(
        "Linear",
        ["x", "weight", "scales", *names],
        {"y": TensorProto.FLOAT},
        {"x": x},
        {"weight": quantized.data, "scales": quantized.scales, **constants},
        bits=quantized.bits,
        num_outputs=num_outputs,
        activation=activation,
        gated=int(gated),
        epsilon=EPSILON,
    )
    result: Array = model.run(None, {"x": x})[0]
    return result


def product(x: Array, quantized: QuantizedWeight, num_outputs: int) -> Array:
    """What the operator's product stands for, in double precision."""
    padded = np.zeros((len(x), -(-x.shape[1] // 64) * 64))
    padded[:, : x.shape[1]] = x
    kept = quantized_rows(padded, BLOCK_SIZES[quantized.bits])[:, : x.shape[1]]
    return kept @ dequantized_weight(quantized, x.shape[1], num_outputs).astype(np.float64)


def assert_close(found: Array, expected: Array, one_code: float = 0.0) -> None:
    """Equal but for rounding, and for `one_code`, what a code that falls the other way makes."""
    limit = 1e-5 * np.abs(expected).max() + 1e-30
    assert np.abs(found - expected).max() <= limit + 1.5 * one_code
    if one_code:
        assert np.median(np.abs(found - expected)) <= limit


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200), st.integers(1, 70))


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([8, 4]), st.integers(0, 1000), st.booleans())
def test_linear_is_the_product_of_what_was_rounded(
    shape: tuple[int, int, int], bits: int, seed: int, decorated: bool
) -> None:
    num_rows, num_inputs, num_outputs = shape
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(num_inputs, num_outputs)).astype(np.float32)
    x = (rng.normal(size=(num_rows, num_inputs)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    quantized = quantized_weight(weight, bits)
    if not decorated:
        assert_close(linear(x, quantized, num_outputs), product(x, quantized, num_outputs))
        return
    norm = rng.uniform(0.5, 1.5, num_inputs).astype(np.float32)
    bias = rng.normal(size=len(quantized.data) * 16).astype(np.float32)
    residual = rng.normal(size=(num_rows, num_outputs)).astype(np.float32)
    found = linear(x, quantized, num_outputs, activation=1, norm=norm, bias=bias, residual=residual)
    normalized = rms_norm(x, norm, EPSILON)
    expected = silu(product(normalized, quantized, num_outputs) + bias[:num_outputs]) + residual
    # The normalization's last bit may move a code.
    one_code = np.abs(normalized).max() / 127 * np.abs(weight).max()
    assert_close(found, expected, float(one_code))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("bits", [8, 4])
def test_gate_and_up_are_taken_in_turn(num_rows: int, bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 2 * 80)).astype(np.float32)
    x = rng.normal(size=(num_rows, 96)).astype(np.float32)
    quantized = quantized_weight(weight, bits)
    both = product(x, quantized, 160).reshape(num_rows, 5, 2, 16)
    expected = (silu(both[:, :, 0]) * both[:, :, 1]).reshape(num_rows, 80)
    assert_close(linear(x, quantized, 80, activation=1, gated=True), expected)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 64), np.float32),
        np.full((3, 64), 127.0, np.float32),
        np.full((2, 128), -1e30, np.float32),
        np.full((2, 64), 1e-38, np.float32),
        np.array([[1e6] + [1e-6] * 63] * 9, np.float32),
    ],
    ids=["zeros", "largest codes", "huge", "denormal", "outlier"],
)
def test_extreme_activations(bits: int, x: Array) -> None:
    weight = np.where(np.arange(x.shape[1] * 16) % 3, -1.0, 1.0).astype(np.float32)
    quantized = quantized_weight(weight.reshape(-1, 16), bits)
    assert_close(linear(x, quantized, 16), product(x, quantized, 16))


def test_what_is_not_a_number_stays_in_its_row() -> None:
    x = np.ones((4, 64), np.float32)
    x[2, 5] = np.nan
    quantized = quantized_weight(np.ones((64, 16), np.float32), 8)
    found = linear(x, quantized, 16)
    assert np.isfinite(found[[0, 1, 3]]).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rows_result_does_not_depend_on_the_other_rows(bits: int) -> None:
    rng = np.random.default_rng(1)
    quantized = quantized_weight(rng.normal(size=(576, 112)).astype(np.float32), bits)
    x = rng.normal(size=(40, 576)).astype(np.float32)
    whole = linear(x, quantized, 112)
    for size in (1, 2, 3, 5, 8, 12, 13, 16, 17, 33):
        assert np.array_equal(linear(x[:size], quantized, 112), whole[:size])
        assert np.array_equal(linear(x[-size:], quantized, 112), whole[-size:])


def kernels_here() -> list[str]:
    """Those that this processor runs, each found in a process of its own."""
    code = "from medusa_trt.runtime.operators import kernels_name; print(kernels_name())"
    found = []
    for name in KERNELS:
        environment = {**os.environ, "MEDUSA_TRT_KERNELS": name}
        run = [sys.executable, "-c", code]
        shown = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        if shown.stdout.strip() == name:
            found.append(name)
    return found


def test_all_kernels_give_the_same_bits(tmp_path: Path) -> None:
    names = kernels_here()
    assert "portable" in names and kernels_name() in names
    rng = np.random.default_rng(2)
    results: dict[str, list[Array]] = {}
    inputs = tmp_path / "inputs.npz"
    arrays = {
        f"{kind}{index}": array.astype(np.float32)
        for index, (rows, size, outputs) in enumerate(
            [(1, 64, 16), (2, 576, 48), (3, 100, 40), (7, 192, 64), (16, 128, 33), (33, 640, 80)]
        )
        for kind, array in (
            ("x", rng.normal(size=(rows, size))),
            ("w", rng.normal(size=(size, outputs))),
        )
    }
    np.savez(inputs, allow_pickle=False, **arrays)
    for name in names:
        output = tmp_path / f"{name}.npz"
        environment = {**os.environ, "MEDUSA_TRT_KERNELS": name}
        command = [sys.executable, __file__, os.fspath(inputs), os.fspath(output)]
        subprocess.run(command, env=environment, check=True)
        results[name] = list(np.load(output).values())
    for name in names:
        pairs = zip(results[name], results["portable"], strict=True)
        assert all(np.array_equal(*pair) for pair in pairs), name


def run_products(inputs: str, output: str) -> None:
    """Multiplies what is in a file, for a process with other kernels."""
    arrays = dict(np.load(inputs))
    results = []
    for index in range(len(arrays) // 2):
        x, weight = arrays[f"x{index}"], arrays[f"w{index}"]
        for bits in (8, 4):
            results.append(linear(x, quantized_weight(weight, bits), weight.shape[1]))
    np.savez(output, *results)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(0, 200),
    st.integers(0, 6),
    st.integers(0, 2048),
    st.integers(0, 4),
    st.integers(-3, 120),
    st.sampled_from([8, 4, 3, 0]),
    st.booleans(),
)
def test_wrong_shapes_are_refused(
    num_rows: int,
    size: int,
    groups: int,
    width: int,
    blocks: int,
    num_outputs: int,
    bits: int,
    gated: bool,
) -> None:
    quantized = QuantizedWeight(
        np.zeros((groups, width), np.uint8), np.zeros((groups, blocks, 16), np.float16), bits
    )
    x = np.zeros((num_rows, size), np.float32)
    fits = bits in (4, 8) and width == -(-size // 64) * 64 * 2 * bits
    fits = fits and blocks * BLOCK_SIZES.get(bits, 1) * bits * 2 == width
    columns = groups // 2 * 16 if gated else groups * 16
    fits = fits and size > 0 and columns - 16 < num_outputs <= columns
    fits = fits and not (gated and groups % 2)
    try:
        found = linear(x, quantized, num_outputs, activation=int(gated), gated=gated)
    except Exception as error:
        assert not fits, error
    else:
        assert fits and found.shape == (num_rows, num_outputs)


def tree_attention(
    states: Array,
    cache: tuple[Array, Array],
    past: list[int],
    offsets: list[int],
    mask: Array,
    tables: tuple[Array, Array],
    *,
    heads: tuple[int, int],
    packed: bool = True,
) -> list[Array]:
    """Runs the operator: what was attended to, and the new keys and values."""
    num_heads, kv_heads = heads
    size = cache[0].shape[3]
    names = ["query", "key", "value", "past_key", "past_value", "past", "offsets", "mask"]
    feeds: dict[str, Array] = {"query": states}
    if packed:
        names[1:3] = ["", ""]
    else:
        cuts = [num_heads * size, (num_heads + kv_heads) * size]
        query, key, value = np.split(states, cuts, axis=2)
        feeds = {"query": query, "key": key, "value": value}
    feeds |= {
        "past_key": cache[0],
        "past_value": cache[1],
        "past": np.array(past, np.int64),
        "offsets": np.array(offsets, np.int64),
        "mask": mask,
        "cos": tables[0],
        "sin": tables[1],
    }
    model = session(
        "TreeAttention",
        [*names, "cos", "sin"],
        dict.fromkeys(["out", "new_key", "new_value"], TensorProto.FLOAT),
        feeds,
        {},
        num_heads=num_heads,
        kv_num_heads=kv_heads,
        scale=0.25,
    )
    results: list[Array] = model.run(None, feeds)
    return results


def random_attention(seed: int, *, batch: int, nodes: int, heads: tuple[int, int], size: int):  # type: ignore[no-untyped-def]
    """Inputs of a random tree over ragged sequences."""
    rng = np.random.default_rng(seed)
    capacity = 40
    width = (heads[0] + 2 * heads[1]) * size
    states = rng.normal(size=(batch, nodes, width)).astype(np.float32)
    shape = (batch, heads[1], capacity, size)
    cache = tuple(rng.normal(size=shape).astype(np.float32) for _ in range(2))
    past = rng.integers(0, capacity - nodes, batch).tolist()
    parents = [-1, *(int(rng.integers(0, node)) for node in range(1, nodes))]
    sees = np.zeros((nodes, nodes), bool)
    offsets = [0] * nodes
    for node, parent in enumerate(parents):
        sees[node, node] = True
        if parent >= 0:
            sees[node] |= sees[parent]
            offsets[node] = offsets[parent] + 1
    mask = np.where(sees, 0, np.finfo(np.float32).min).astype(np.float32)
    angles = rng.normal(size=(64, size // 4))
    tables = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    return states, cache, past, offsets, mask, tables, sees


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from([(1, 1), (3, 1), (4, 2), (9, 3)]),
    st.sampled_from([4, 16, 20]),
    st.booleans(),
)
def test_tree_attention_is_attention_to_the_past_and_the_ancestors(
    seed: int, batch: int, nodes: int, heads: tuple[int, int], size: int, packed: bool
) -> None:
    states, cache, past, offsets, mask, tables, sees = random_attention(
        seed, batch=batch, nodes=nodes, heads=heads, size=size
    )
    out, new_key, new_value = tree_attention(
        states, cache, past, offsets, mask, tables, heads=heads, packed=packed
    )
    num_heads, kv_heads = heads
    expected_key, expected_value = cache[0].copy(), cache[1].copy()
    split = states.reshape(batch, nodes, -1, size)
    for b in range(batch):
        for node in range(nodes):
            row, position = past[b] + node, past[b] + offsets[node]
            for head in range(kv_heads):
                key = split[b, node, num_heads + head]
                expected_key[b, head, row] = rotated(key, position, *tables)
                expected_value[b, head, row] = split[b, node, num_heads + kv_heads + head]
    assert np.allclose(new_key, expected_key, atol=1e-5)
    assert np.array_equal(new_value, expected_value)
    for b in range(batch):
        for node in range(nodes):
            allowed = [*range(past[b]), *(past[b] + np.flatnonzero(sees[node]))]
            for head in range(num_heads):
                query = rotated(split[b, node, head], past[b] + offsets[node], *tables)
                kv = head * kv_heads // num_heads
                reference = attended(
                    query, expected_key[b, kv], expected_value[b, kv], allowed, 0.25
                )
                found = out[b, node, head * size : (head + 1) * size]
                assert np.allclose(found, reference, atol=2e-5)


def test_the_first_token_attends_to_itself_alone() -> None:
    heads, size = (2, 1), 128
    states, cache, _, _, mask, tables, _ = random_attention(
        1, batch=1, nodes=1, heads=heads, size=size
    )
    out = tree_attention(states, cache, [0], [0], mask, tables, heads=heads)[0]
    value = states[0, 0, -size:]
    assert np.allclose(out[0, 0], np.tile(value, 2), atol=1e-6)


def test_a_nodes_result_does_not_depend_on_where_its_path_lies() -> None:
    """The bits are those of plain decoding, whatever stands between a node and its ancestors."""
    heads, size = (9, 3), 64
    states, cache, _, _, _, tables, _ = random_attention(
        7, batch=1, nodes=12, heads=heads, size=size
    )
    lowest = np.finfo(np.float32).min
    path = [0, 4, 9, 11]
    sees = np.eye(12, dtype=bool)
    for index, node in enumerate(path):
        sees[node, path[: index + 1]] = True
    mask = np.where(sees, 0, lowest).astype(np.float32)
    offsets = [path.index(node) if node in path else 1 for node in range(12)]
    whole = tree_attention(states, cache, [20], offsets, mask, tables, heads=heads)[0]
    plain_cache = cache
    for index, node in enumerate(path):
        one = tree_attention(
            states[:, node : node + 1],
            plain_cache,
            [20 + index],
            [0],
            np.zeros((1, 1), np.float32),
            tables,
            heads=heads,
        )
        plain_cache = (one[1], one[2])
        assert np.array_equal(one[0][0, 0], whole[0, node])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past": [38]}, "the nodes do not fit the cache"),
        ({"past": [-1]}, "the nodes do not fit the cache"),
        ({"offsets": [0, 60, 61]}, "a position is outside the rotary table"),
        ({"offsets": [0, 1]}, "inputs differ in shape"),
        ({"heads": (4, 1)}, "inputs differ in shape"),
        ({"past": [0, 0]}, "inputs differ in shape"),
    ],
)
def test_attention_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    states, cache, _, offsets, mask, tables, _ = random_attention(
        3, batch=1, nodes=3, heads=(3, 1), size=16
    )
    arguments: dict[str, Any] = {"past": [5], "offsets": offsets, "heads": (3, 1), **change}
    with pytest.raises(Exception, match=message):
        tree_attention(
            states,
            cache,
            arguments["past"],
            arguments["offsets"],
            mask,
            tables,
            heads=arguments["heads"],
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_argmax_is_the_first_of_the_largest(
    num_rows: int, size: int, seed: int, with_nan: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-5, 5, (num_rows, size)).astype(np.float32)
    if with_nan:
        x[0] = np.nan
    model = session("ArgMax", ["x"], {"y": TensorProto.INT64}, {"x": x}, {})
    found = model.run(None, {"x": x})[0]
    expected = [0 if np.isnan(row).all() else int(np.argmax(row)) for row in x]
    assert found.tolist() == expected


if __name__ == "__main__":
    run_products(*sys.argv[1:])
