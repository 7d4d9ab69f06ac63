"""The transposing of weights, on graphs small enough to read."""

import numpy as np
import pytest
from support.graphs.graph_texts import Arrays, parsed, record_reads, rewritten

from medusa_trt.export.passes.fold_transpose import FoldTransposePass

WEIGHTS: Arrays = {
    "w": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
    "stack": np.random.default_rng(1).normal(size=(5, 4, 2)).astype(np.float32),
}


@pytest.mark.parametrize(
    ("body", "weight", "output"),
    [
        ("t = Transpose(w)", "w", "float[3, 6] y"),
        ("t = Transpose<perm = [1, 0]>(w)", "w", "float[3, 6] y"),
        ("t = Transpose<perm = [2, 1, 0]>(stack)", "stack", "float[2, 3, 5] y"),
        ("t = Transpose(stack)", "stack", "float[2, 3, 5] y"),
        ("t = Transpose<perm = [0, 1, 2]>(stack)", "stack", "float[5, 3, 2] y"),
    ],
)
def test_a_transposed_weight_takes_the_place_of_a_transpose(
    body: str, weight: str, output: str
) -> None:
    model = parsed(f"g (float[3, 4] x) => ({output}) {{ {body} y = MatMul(x, t) }}", WEIGHTS)
    assert rewritten(model, FoldTransposePass()) == {"MatMul": 1}
    assert list(model.graph.initializers) == [f"{weight}.transposed"]


def test_the_weight_is_not_read() -> None:
    model = parsed(
        "g (float[3, 4] x) => (float[3, 6] y) { t = Transpose(w) y = MatMul(x, t) }", WEIGHTS
    )
    reads = record_reads(model, "w")
    assert FoldTransposePass()(model).modified and not reads
    transposed = model.graph.initializers["w.transposed"].const_value
    assert transposed is not None and np.array_equal(transposed.numpy(), WEIGHTS["w"].T)
    assert reads == ["w"]


def test_a_weight_that_is_also_used_as_it_is_stays_the_only_one() -> None:
    text = """g (float[3, 4] x, int64[2] i) => (float[3, 6] y, float[2, 4] z)
        { t = Transpose(w) y = MatMul(x, t) z = Gather(w, i) }"""
    model = parsed(text, WEIGHTS)
    counts = rewritten(model, FoldTransposePass(), {"i": np.array([5, 0])})
    assert counts == {"Transpose": 1, "MatMul": 1, "Gather": 1}
    assert list(model.graph.initializers) == ["w"]


def test_the_transpose_of_a_computed_value_stays() -> None:
    text = "g (float[3, 4] x) => (float[4, 4] y) { t = Transpose(x) y = MatMul(t, x) }"
    model = parsed(text, WEIGHTS)
    assert rewritten(model, FoldTransposePass())["Transpose"] == 1
