"""Graphs of narrow floats turned to float32, against numpy."""

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs.graph_texts import parsed, results

from medusa_trt.export.passes.widen_floats import WidenFloatsPass

WEIGHT = np.random.default_rng(0).normal(size=(8, 8))
# The text form takes a narrow number by its bits: these are those of 2, in both types.
TEXT = """g (float[4, 8] x) => (float[4, 8] y) {
    a = Cast<to = NUMBER>(x)
    two = Constant<value = KIND[1] {16384}>()
    b = Mul(a, two)
    c = MatMul(b, w)
    y = Cast<to = 1>(c)
}"""


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_nothing_is_rounded_but_the_weights(kind: str) -> None:
    dtype = ir.DataType.FLOAT16 if kind == "float16" else ir.DataType.BFLOAT16
    weight = WEIGHT.astype(dtype.numpy())
    text = TEXT.replace("NUMBER", str(int(dtype))).replace("KIND", kind)
    model = parsed(text, {"w": weight})
    WidenFloatsPass()(model)
    for node in model.graph:
        assert all(
            value.dtype == ir.DataType.FLOAT for value in (*node.inputs, *node.outputs) if value
        )
    x = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    expected = 2 * x @ weight.astype(np.float32)
    np.testing.assert_allclose(results(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    assert (
        np.abs(
            2 * x.astype(dtype.numpy()).astype(np.float32) @ weight.astype(np.float32) - expected
        ).max()
        > 1e-4
    )


def test_inputs_and_outputs_of_a_graph_become_wide_and_integers_stay() -> None:
    text = """g (float16[4, 8] x, int64[2] i) => (float16[2, 8] y, int64[4] z)
        { y = Gather(x, i) z = ArgMax<axis = -1, keepdims = 0>(x) }"""
    model = parsed(text, {})
    WidenFloatsPass()(model)
    types = [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)]
    assert types == [ir.DataType.FLOAT, ir.DataType.INT64] * 2
    x = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    found = results(model, {"x": x, "i": np.array([3, 1])})
    assert np.array_equal(found["y"], x[[3, 1]]) and np.array_equal(found["z"], x.argmax(-1))


def test_a_dequantized_weight_is_wide_too() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    scales = np.array([0.1, 0.3], np.float16)
    text = """g (float16[4, 2] x) => (float16[4, 8] y)
        { w = DequantizeLinear<axis = 0>(codes, scales) y = MatMul(x, w) }"""
    model = parsed(text, {"codes": codes, "scales": scales})
    WidenFloatsPass()(model)
    x = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
    expected = x @ (codes * scales.astype(np.float32)[:, None])
    np.testing.assert_allclose(results(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
