"""The fusion of additions and normalizations, on graphs small enough to read."""

import numpy as np
import pytest
from support.graphs.graph_texts import Arrays, parsed, rewritten

from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass

SKIP_NORM = "SkipSimplifiedLayerNormalization"

NORM = """norm (float[1, 3, 8] x, float[1, 3, 8] d) => (float[1, 3, 8] y) {
    s = Add(x, d)
    n = RMSNormalization<axis = -1, epsilon = 0.001>(s, scale)
    y = Relu(n)
}"""
SCALES: Arrays = {
    "scale": np.linspace(0.5, 2, 8, dtype=np.float32),
    "other_scale": np.linspace(2, 1, 8, dtype=np.float32),
    "wide_scale": np.linspace(0.5, 2, 24, dtype=np.float32).reshape(3, 8),
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("axis = -1", "axis = 2"),
        ("<axis = -1, epsilon = 0.001>", ""),
        ("Add(x, d)", "Add(d, x)"),
        ("Add(x, d)", "Add(x, x)"),
        ("[1, 3, 8]", "[3, 8]"),
    ],
)
def test_a_sum_and_its_normalization_are_fused(old: str, new: str) -> None:
    model = parsed(NORM.replace(old, new) if old else NORM, SCALES)
    assert rewritten(model, FuseSkipNormPass()) == {SKIP_NORM: 1, "Relu": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("axis = -1, epsilon = 0.001>(s, scale)", "axis = -2>(s, wide_scale)"),
        ("[1, 3, 8] d", "[1, 1, 8] d"),
        ("[1, 3, 8] d", "[8] d"),
        ("[1, 3, 8]", "[1, 2, 3, 8]"),
        ("Add(x, d)", "Sub(x, d)"),
        ("float[1, 3, 8] y)", "float[1, 3, 8] y, float[1, 3, 8] s)"),
        ("float[1, 3, 8] y)", "float[1, 3, 8] y, float[1, 3, 8] n)"),
    ],
)
def test_other_normalizations_stay(old: str, new: str) -> None:
    counts = rewritten(parsed(NORM.replace(old, new), SCALES), FuseSkipNormPass())
    assert counts["RMSNormalization"] == 1 and counts[SKIP_NORM] == 0


def test_a_sum_is_still_there_for_its_other_users() -> None:
    text = """norm (float[1, 3, 8] x, float[1, 3, 8] d) => (float[1, 3, 8] y, float[1, 3, 8] z) {
        s = Add(x, d)
        before = Neg(s)
        scaled = Mul(scale, other_scale)
        n = RMSNormalization<axis = -1, epsilon = 0.001>(s, scaled)
        m = RMSNormalization<axis = -1, epsilon = 0.001>(s, other_scale)
        y = Mul(n, before)
        z = Mul(m, s)
    }"""
    counts = rewritten(parsed(text, SCALES), FuseSkipNormPass())
    assert counts == {SKIP_NORM: 1, "RMSNormalization": 1, "Neg": 1, "Mul": 3}


def test_every_normalization_of_a_residual_stream_is_fused() -> None:
    text = """norm (float[1, T, 8] x, float[1, T, 8] d) => (float[1, T, 8] y) {
        s = Add(x, d)
        n = RMSNormalization<axis = -1>(s, scale)
        t = Add(s, n)
        m = RMSNormalization<axis = -1>(t, other_scale)
        y = Add(t, m)
    }"""
    array = np.random.default_rng(0).standard_normal((2, 1, 5, 8)).astype(np.float32)
    feeds: Arrays = {"x": array[0], "d": array[1]}
    counts = rewritten(parsed(text, SCALES), FuseSkipNormPass(), feeds)
    assert counts == {SKIP_NORM: 2, "Add": 1}


@pytest.mark.parametrize("rows", [("T", "U"), ("?", "?")])
def test_a_sum_that_may_broadcast_is_not_fused(rows: tuple[str, str]) -> None:
    text = NORM.replace("3, 8] x", f"{rows[0]}, 8] x").replace("3, 8] d", f"{rows[1]}, 8] d")
    text = text.replace("3, 8] y", "V, 8] y")
    feeds: Arrays = {"x": np.ones((1, 4, 8), np.float32), "d": np.ones((1, 1, 8), np.float32)}
    counts = rewritten(parsed(text, SCALES), FuseSkipNormPass(), feeds)
    assert counts["RMSNormalization"] == 1
