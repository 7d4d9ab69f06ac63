"""The packing of three products into one, on graphs small enough to read."""

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs.graph_texts import Arrays, parsed, rewritten

from medusa_trt.export.passes.pack_qkv import PackQkvPass
from medusa_trt.export.passes.pack_split_qkv import PackSplitQkvPass
from medusa_trt.export.weights.lazy_tensor import LazyTensor

WIDTHS = {"q": 32, "k": 16, "v": 8}
WEIGHTS: Arrays = {
    name: np.random.default_rng(width).normal(size=(32, width)).astype(np.float32)
    for name, width in (*((f"w{part}", width) for part, width in WIDTHS.items()), ("wu", 24))
}
TEXT = """projections (float[1, 3, 32] x, float[1, 3, 32] z) =>
    (float[1, 3, 32] a, float[1, 3, 16] b, float[1, 3, 8] c, float[1, 3, 24] d)
    { PRODUCTS a = Relu(q) b = Neg(k) c = Exp(v) d = Relu(u) }"""
PRODUCTS = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) u = MatMul(z, wu)"


def projections(products: str) -> ir.Model:
    return parsed(TEXT.replace("PRODUCTS", products), WEIGHTS)


def test_three_products_of_a_value_become_one_and_a_split() -> None:
    counts = rewritten(projections(PRODUCTS), PackSplitQkvPass())
    assert counts == {"MatMul": 2, "Split": 1, "Relu": 2, "Neg": 1, "Exp": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v = MatMul(x, wv)", "v = MatMul(z, wv)"),  # two of x, and two of z
        ("u = MatMul(z, wu)", "u = MatMul(x, wu)"),  # four
        ("v = MatMul(x, wv)", "n = Neg(wv) v = MatMul(x, n)"),  # two by constants
    ],
)
def test_other_numbers_of_products_stay(old: str, new: str) -> None:
    counts = rewritten(projections(PRODUCTS.replace(old, new)), PackSplitQkvPass())
    assert counts["MatMul"] == 4 and "Split" not in counts


def test_a_product_that_nothing_reads_is_not_counted() -> None:
    products = f"{PRODUCTS} unread = MatMul(x, wu)"
    assert rewritten(projections(products), PackSplitQkvPass())["Split"] == 1


def test_the_packed_weight_is_the_one_that_attention_reads_in_the_other_form() -> None:
    """Both verify graphs of a bundle share it, because equal recipes have equal keys."""
    arrays = {f"w{part}": np.ones((32, 32), np.float32) for part in "qkv"}
    weights = {
        name: LazyTensor(lambda array=array: array, array.shape, ("file", name), name=name)  # type: ignore[misc]
        for name, array in arrays.items()
    }
    text = """attention (float[1, 3, 32] x) => (float[1, 3, 32] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) y = ATTENTION }"""
    keys = []
    for attention, graph_pass in (
        ("com.microsoft.GroupQueryAttention(q, k, v)", PackQkvPass()),
        ("Sum(q, k, v)", PackSplitQkvPass()),
    ):
        model = parsed(text.replace("ATTENTION", attention), arrays)
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor
        graph_pass(model)
        packed = next(v for n, v in model.graph.initializers.items() if "packed_weight" in n)
        assert isinstance(packed.const_value, LazyTensor)
        keys.append(packed.const_value.key)
    assert keys[0] == keys[1]
