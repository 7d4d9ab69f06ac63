"""The packing of projections before attention, on graphs small enough to read."""

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs.graph_texts import Arrays, parsed, rewritten

from medusa_trt.export.passes.pack_qkv import PackQkvPass

ATTENTION = """attention (
    float[1, 3, 32] x, float[1, 3, 32] z, float[1, 1, 8, 16] past_key, float[1, 1, 8, 16] past_value
) => (float[1, 3, 32] y, float[1, 1, 8, 16] key, float[1, 1, 8, 16] value, float[1, 3, 32] w) {
    PROJECTIONS
    w = Relu(z)
    y, key, value = com.microsoft.GroupQueryAttention
        <num_heads = 2, kv_num_heads = 1, do_rotary = 1>
        (q, k, v, past_key, past_value, seqlens, total, cos, sin, positions, bias)
}"""
PRODUCTS = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"


def attention(projections: str) -> ir.Model:
    """Attention of 3 nodes after 2 tokens, 2 heads that share one key-value head."""
    rng = np.random.default_rng(0)
    shapes = {"wq": (32, 32), "wk": (32, 16), "wv": (32, 16), "bq": (32,), "bk": (16,), "bv": (16,)}
    shapes |= {"cos": (16, 8), "sin": (16, 8), "row": (1, 3, 16)}
    weights: Arrays = {
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        "seqlens": np.array([4], np.int32),
        "total": np.array(5, np.int32),
        "positions": np.array([[2, 3, 4]]),
        "bias": np.zeros((1, 1, 3, 5), np.float32),
    }
    return parsed(ATTENTION.replace("PROJECTIONS", projections), weights)


def test_three_products_become_one() -> None:
    counts = rewritten(attention(PRODUCTS), PackQkvPass())
    assert counts == {"MatMul": 1, "GroupQueryAttention": 1, "Relu": 1}


@pytest.mark.parametrize("biased", ["qkv", "qv", "k"])
def test_biases_are_packed_too(biased: str) -> None:
    projections = PRODUCTS
    for name in biased:
        projections = projections.replace(f"{name} = ", f"{name}0 = ")
        projections += f" {name} = Add({name}0, b{name})"
    counts = rewritten(attention(projections), PackQkvPass())
    assert counts == {"MatMul": 1, "Add": 1, "GroupQueryAttention": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k = MatMul(x, wk)", "k = MatMul(z, wk)"),
        ("k = MatMul(x, wk)", "c = Neg(wk) k = MatMul(x, c)"),
        ("k = MatMul(x, wk)", "a = MatMul(x, wk) k = Relu(a)"),
        ("k = MatMul(x, wk)", "a = MatMul(x, wk) k = Add(a, row)"),
        ("k = MatMul(x, wk)", "a = MatMul(x, wk) b = MatMul(z, wk) k = Add(a, b)"),
    ],
)
def test_other_projections_stay(old: str, new: str) -> None:
    projections = PRODUCTS.replace(old, new)
    counts = rewritten(attention(projections), PackQkvPass())
    assert counts["MatMul"] == projections.count("MatMul")


def test_a_product_used_elsewhere_stays_there() -> None:
    text = PRODUCTS + " u = Relu(q)"
    model = attention(text)
    relu = next(node for node in model.graph if node.outputs[0].name == "w")
    used = next(node for node in model.graph if node.outputs[0].name == "u")
    relu.replace_input_with(0, used.outputs[0])
    assert rewritten(model, PackQkvPass())["MatMul"] == 2
