"""The parting of stacked weights, on graphs small enough to read."""

import numpy as np
import pytest
from support.graphs.graph_texts import Arrays, parsed, record_reads, rewritten

from medusa_trt.export.passes.unstack_weights import UnstackWeightsPass

WEIGHTS: Arrays = {
    "w": np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32),
    "matrix": np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32),
    "first": np.array(0),
    "last": np.array(2),
    "listed": np.array([1]),
}
EXPERTS = """experts (float[2, 4] x) => (float[2, 4] y) {
    a = Gather(w, first)
    b = Gather<axis = 0>(w, last)
    h = MatMul(x, a)
    y = MatMul(h, b)
}"""


def test_each_matrix_becomes_a_weight() -> None:
    model = parsed(EXPERTS, WEIGHTS)
    assert rewritten(model, UnstackWeightsPass()) == {"MatMul": 2}
    assert {"w.0", "w.2"} <= model.graph.initializers.keys()
    assert "w" not in model.graph.initializers


def test_the_stack_is_not_read() -> None:
    model = parsed(EXPERTS, WEIGHTS)
    reads = record_reads(model, "w")
    assert UnstackWeightsPass()(model).modified and not reads
    for number in (0, 2):
        matrix = model.graph.initializers[f"w.{number}"].const_value
        assert matrix is not None and np.array_equal(matrix.numpy(), WEIGHTS["w"][number])


def test_a_stack_with_other_uses_stays_beside_its_matrices() -> None:
    text = EXPERTS.replace("[2, 4] y)", "[2, 4] y, float[3, 4, 4] z)").replace("{", "{ z = Neg(w)")
    model = parsed(text, WEIGHTS)
    assert rewritten(model, UnstackWeightsPass()) == {"MatMul": 2, "Neg": 1}
    assert {"w", "w.0", "w.2"} <= model.graph.initializers.keys()


@pytest.mark.parametrize(
    ("gather", "output"),
    [
        ("Gather<axis = 1>(w, first)", "float[3, 4] y"),
        ("Gather(w, listed)", "float[1, 4, 4] y"),
        ("Gather(matrix, first)", "float[4] y"),
        ("Gather(w, i)", "float[4, 4] y"),
        ("Gather(x, first)", "float[4, 4] y"),
    ],
)
def test_other_gathers_stay(gather: str, output: str) -> None:
    text = f"g (float[2, 4, 4] x, int64 i) => ({output}) {{ g = {gather} y = Relu(g) }}"
    counts = rewritten(parsed(text, WEIGHTS), UnstackWeightsPass(), {"i": np.array(1)})
    assert counts == {"Gather": 1, "Relu": 1}
