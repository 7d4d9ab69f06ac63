"""Linear layers and argmax of the operator library against slow references."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from support.one_operator import KERNELS, kernels_here, session
from support.reference.linear import quantized_rows, rms_norm, silu

from medusa_trt.export.quantization.library import (
    BLOCK_SIZES,
    QuantizedWeight,
    dequantize_weight,
    quantize_weight,
)
from medusa_trt.runtime.engines.operators import find_library, read_kernels_name

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

TESTS = os.fspath(Path(__file__).parents[2])
"""Where `support` lies, for processes that run this file."""

EPSILON = 1e-5


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


def embed(quantized: QuantizedWeight, ids: Array, size: int) -> Array:
    """Runs the operator Embedding."""
    model = session(
        "Embedding",
        ["ids", "weight", "scales"],
        {"y": TensorProto.FLOAT},
        {"ids": ids},
        {"weight": quantized.data, "scales": quantized.scales},
        size=size,
    )
    rows: Array = model.run(None, {"ids": ids})[0]
    return rows


def product(x: Array, quantized: QuantizedWeight, num_outputs: int) -> Array:
    """What the operator's product stands for, in double precision."""
    padded = np.zeros((len(x), -(-x.shape[1] // 64) * 64))
    padded[:, : x.shape[1]] = x
    kept = quantized_rows(padded, BLOCK_SIZES[quantized.bits])[:, : x.shape[1]]
    return kept @ dequantize_weight(quantized, x.shape[1], num_outputs).astype(np.float64)


def assert_close(actual: Array, expected: Array, one_code: float = 0.0) -> None:
    """Equal but for rounding, and for `one_code`, what a code that falls the other way makes."""
    limit = 1e-5 * np.abs(expected).max() + 1e-30
    assert np.abs(actual - expected).max() <= limit + 1.5 * one_code
    if one_code:
        assert np.median(np.abs(actual - expected)) <= limit


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
    quantized = quantize_weight(weight, bits)
    if not decorated:
        assert_close(linear(x, quantized, num_outputs), product(x, quantized, num_outputs))
        return
    norm = rng.uniform(0.5, 1.5, num_inputs).astype(np.float32)
    bias = rng.normal(size=len(quantized.data) * 16).astype(np.float32)
    residual = rng.normal(size=(num_rows, num_outputs)).astype(np.float32)
    actual = linear(
        x, quantized, num_outputs, activation=1, norm=norm, bias=bias, residual=residual
    )
    normalized = rms_norm(x, norm, EPSILON)
    expected = silu(product(normalized, quantized, num_outputs) + bias[:num_outputs]) + residual
    # The normalization's last bit may move a code.
    one_code = np.abs(normalized).max() / 127 * np.abs(weight).max()
    assert_close(actual, expected, float(one_code))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100), st.integers(1, 150), st.integers(0, 1000))
def test_embeddings_are_the_rows_of_the_rounded_table(
    num_tokens: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(num_tokens, size)).astype(np.float32)
    quantized = quantize_weight(table.T, 8)
    ids = rng.integers(0, num_tokens, (2, 5))
    assert np.array_equal(
        embed(quantized, ids, size), dequantize_weight(quantized, size, num_tokens).T[ids]
    )


@pytest.mark.parametrize("wrong", [-1, 32])
def test_an_embedding_of_no_token_is_refused(wrong: int) -> None:
    quantized = quantize_weight(np.ones((64, 20), np.float32), 8)
    with pytest.raises(Exception, match="an id is not in the table"):
        embed(quantized, np.array([[0, wrong]]), 64)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("bits", [8, 4])
def test_gate_and_up_are_taken_in_turn(num_rows: int, bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 2 * 80)).astype(np.float32)
    x = rng.normal(size=(num_rows, 96)).astype(np.float32)
    quantized = quantize_weight(weight, bits)
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
    quantized = quantize_weight(weight.reshape(-1, 16), bits)
    assert_close(linear(x, quantized, 16), product(x, quantized, 16))


def test_what_is_not_a_number_stays_in_its_row() -> None:
    x = np.ones((4, 64), np.float32)
    x[2, 5] = np.nan
    quantized = quantize_weight(np.ones((64, 16), np.float32), 8)
    actual = linear(x, quantized, 16)
    assert np.isfinite(actual[[0, 1, 3]]).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rows_result_does_not_depend_on_the_other_rows(bits: int) -> None:
    rng = np.random.default_rng(1)
    quantized = quantize_weight(rng.normal(size=(576, 112)).astype(np.float32), bits)
    x = rng.normal(size=(40, 576)).astype(np.float32)
    whole = linear(x, quantized, 112)
    for size in (1, 2, 3, 5, 8, 12, 13, 16, 17, 33):
        assert np.array_equal(linear(x[:size], quantized, 112), whole[:size])
        assert np.array_equal(linear(x[-size:], quantized, 112), whole[-size:])


def test_all_kernels_give_the_same_bits(tmp_path: Path) -> None:
    names = kernels_here()
    assert "portable" in names and read_kernels_name() in names
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
        environment = {**os.environ, "MEDUSA_TRT_KERNELS": name, "PYTHONPATH": TESTS}
        command = [sys.executable, __file__, os.fspath(inputs), os.fspath(output)]
        subprocess.run(command, env=environment, check=True)
        results[name] = list(np.load(output).values())
    for name in names:
        pairs = zip(results[name], results["portable"], strict=True)
        assert all(np.array_equal(*pair) for pair in pairs), name


def test_every_table_of_kernels_is_in_the_list_of_the_tests() -> None:
    sources = (Path(__file__).parents[3] / "native").rglob("*.cpp")
    pattern = r'Kernels kernels = (?:\{|make_kernels\()"([\w-]+)"'
    tables = (re.findall(pattern, path.read_text()) for path in sources)
    assert sorted(name for names in tables for name in names) == sorted(KERNELS)


def run_products(inputs: str, output: str) -> None:
    """Multiplies what is in a file, for a process with other kernels."""
    arrays = dict(np.load(inputs))
    results = []
    for index in range(len(arrays) // 2):
        x, weight = arrays[f"x{index}"], arrays[f"w{index}"]
        for bits in (8, 4):
            results.append(linear(x, quantize_weight(weight, bits), weight.shape[1]))
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
        actual = linear(x, quantized, num_outputs, activation=int(gated), gated=gated)
    except Exception as error:
        assert not fits, error
    else:
        assert fits and actual.shape == (num_rows, num_outputs)


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
    actual = model.run(None, {"x": x})[0]
    expected = [0 if np.isnan(row).all() else int(np.argmax(row)) for row in x]
    assert actual.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 300), st.integers(1, 12), st.integers(0, 100), st.booleans()
)
def test_top_k_is_the_stable_sort_from_the_top(
    num_rows: int, size: int, count: int, seed: int, with_nan: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.integers(-20, 20, (num_rows, size)) / 4).astype(np.float32)
    if with_nan:
        x[rng.random(x.shape) < 0.3] = np.nan
    model = session("TopK", ["x"], {"y": TensorProto.INT64}, {"x": x}, {}, count=count)
    if count > size:
        with pytest.raises(Exception, match="x has fewer values than are wanted"):
            model.run(None, {"x": x})
        return
    actual = model.run(None, {"x": x})[0]
    for row, indices in zip(x, actual, strict=True):
        best = [int(i) for i in np.argsort(-row, kind="stable") if not np.isnan(row[i])][:count]
        assert indices.tolist() == best + [0] * (count - len(best))


if __name__ == "__main__":
    run_products(*sys.argv[1:])
