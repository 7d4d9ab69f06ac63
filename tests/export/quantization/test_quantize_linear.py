"""The fusing of a quantized product and its neighbours, on graphs small enough to read.

Matrices, and inputs in each block, lie on the grid of their codes, so that nothing is rounded.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from support.graphs.graph_texts import parsed, record_reads, results
from support.one_operator import run_graph
from support.reference.linear import quantized_rows, rms_norm

from medusa_trt.export.quantization.quantize_linear import QuantizeLinearPass
from medusa_trt.export.weight_formats import BITS, WeightFormat
from medusa_trt.runtime.engines.operators import find_library

needs_library = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

NUM_INPUTS, NUM_OUTPUTS = 64, 40
EPSILON = 0.001
FORMATS: tuple[WeightFormat, ...] = ("int8", "int4")

Arrays = dict[str, NDArray[np.generic]]


def make_arrays(format_: WeightFormat) -> tuple[Arrays, Arrays]:
    """Weights and inputs of the graphs below."""
    rng = np.random.default_rng(0)
    limit = 2 ** (BITS[format_] - 1) - 1

    def matrix(*shape: int) -> NDArray[np.float32]:
        codes = rng.integers(-limit, limit + 1, shape)
        codes[::32] = limit  # so that no smaller scale is possible
        codes[1::32] = limit - 1
        return (codes / 64).astype(np.float32)

    weights: Arrays = {name: matrix(NUM_INPUTS, NUM_OUTPUTS) for name in ("w", "up")}
    weights["turned"] = weights["w"].T.copy()
    for name in ("b", "c"):
        weights[name] = rng.normal(size=NUM_OUTPUTS).astype(np.float32)
    weights["scale"] = np.linspace(0.5, 2, NUM_INPUTS, dtype=np.float32)
    x = rng.integers(-127, 128, (3, NUM_INPUTS)) / 128
    x[:, ::32] = 127 / 128
    r, z = rng.normal(size=(3, NUM_OUTPUTS)), rng.normal(size=(1, NUM_OUTPUTS))
    inputs: Arrays = {name: a.astype(np.float32) for name, a in (("x", x), ("r", r), ("z", z))}
    return weights, inputs


def make_graph(body: str, weights: Arrays, outputs: str = "float[3, 40] y") -> ir.Model:
    text = f"g (float[3, 64] x, float[3, 40] r, float[1, 40] z) => ({outputs}) {{ {body} }}"
    return parsed(text, weights)


def count_operators(model: ir.Model, format_: WeightFormat) -> Counter[str]:
    """Applies the pass, and counts the operators in use."""
    QuantizeLinearPass(lambda _: format_)(model)
    RemoveUnusedNodesPass()(model)
    return Counter(node.op_type for node in model.graph)


SILU = "s = Sigmoid(a) g = Mul(a, s)"
FUSED = {
    "product": "y = MatMul(x, w)",
    "gemm": "y = Gemm<transB = 1>(x, turned)",
    "gemm with bias": "y = Gemm<transB = 1>(x, turned, b)",
    "bias": "a = MatMul(x, w) y = Add(a, b)",
    "bias first": "a = MatMul(x, w) y = Add(b, a)",
    "residual": "a = MatMul(x, w) y = Add(r, a)",
    "bias and residual": "a0 = MatMul(x, w) a = Add(a0, b) y = Add(a, r)",
    "silu": "a = MatMul(x, w) s = Sigmoid(a) y = Mul(a, s)",
    "gate": f"a = MatMul(x, w) {SILU} d = MatMul(x, up) y = Mul(g, d)",
    "gate with biases": f"a0 = MatMul(x, w) a = Add(a0, b) {SILU} d0 = MatMul(x, up) d = Add(d0, c)"
    " y = Mul(d, g)",
    "gate and residual": f"a = MatMul(x, w) {SILU} d = MatMul(x, up) m = Mul(g, d) y = Add(m, r)",
}


@needs_library
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", FUSED)
def test_a_product_and_what_follows_it_become_one_operator(
    name: str, format_: WeightFormat
) -> None:
    weights, inputs = make_arrays(format_)
    model = make_graph(FUSED[name], weights)
    expected = results(model, inputs)["y"]
    assert count_operators(model, format_) == {"Linear": 1}
    (found,) = run_graph(model, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@needs_library
@pytest.mark.parametrize("format_", FORMATS)
def test_a_normalization_before_a_product_is_taken_in(format_: WeightFormat) -> None:
    weights, inputs = make_arrays(format_)
    norm = f"n = RMSNormalization<axis = -1, epsilon = {EPSILON}>(x, scale)"
    model = make_graph(f"{norm} y = MatMul(n, w)", weights)
    assert count_operators(model, format_) == {"Linear": 1}
    (found,) = run_graph(model, inputs)
    normalized = rms_norm(inputs["x"], weights["scale"], EPSILON)
    expected = quantized_rows(normalized, 64 if format_ == "int8" else 32) @ weights["w"]
    # A code that lies between two may fall the other way.
    one_code = np.abs(normalized).max() / 127 * np.abs(weights["w"]).max()
    assert np.abs(found - expected).max() <= 1.5 * one_code
    assert np.median(np.abs(found - expected)) <= 1e-4


@needs_library
@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ("a = MatMul(x, w) y = Add(a, z)", {"Linear": 1, "Add": 1}),  # might widen the product
        ("a = MatMul(x, w) y = Relu(a)", {"Linear": 1, "Relu": 1}),
        ("a = MatMul(x, w) s = Sigmoid(r) y = Mul(a, s)", {"Linear": 1, "Sigmoid": 1, "Mul": 1}),
        ("a = MatMul(x, w) d = MatMul(x, up) y = Mul(a, d)", {"Linear": 2, "Mul": 1}),
        (
            "n = RMSNormalization<axis = 0>(x, scale) y = MatMul(n, w)",
            {"Linear": 1, "RMSNormalization": 1},
        ),
    ],
)
def test_other_neighbours_stay(body: str, counts: dict[str, int]) -> None:
    weights, inputs = make_arrays("int8")
    model = make_graph(body, weights)
    expected = results(model, inputs)["y"]
    assert count_operators(model, "int8") == counts
    (found,) = run_graph(model, inputs)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_a_matrix_is_read_when_it_is_written_and_told_then() -> None:
    weights, _ = make_arrays("int8")
    weights["w"][0, 0] += 1e-4  # off the grid
    told: list[tuple[tuple[int, ...], bool]] = []
    model = make_graph("a = MatMul(x, w) d = MatMul(x, up) y = Sub(a, d)", weights)
    reads = record_reads(model, "w")
    QuantizeLinearPass(lambda _: "int8", lambda w, exact: told.append((w.sizes, exact)))(model)
    assert not reads and not told
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.numpy()
    assert "w" in reads and told == [((64, 40), False), ((64, 40), True)]


def test_a_matrix_without_a_format_stays() -> None:
    weights, _ = make_arrays("int8")
    model = make_graph("y = MatMul(x, w)", weights)
    assert not QuantizeLinearPass(lambda _: None)(model).modified
    assert [node.op_type for node in model.graph] == ["MatMul"]
