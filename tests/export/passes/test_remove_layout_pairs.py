"""The removal of layouts that undo each other, on graphs small enough to read."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs.graph_texts import Arrays, parsed, rewritten

from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass

SHAPES: Arrays = {
    "s2345": np.array([2, 3, 4, 5]),
    "s2435": np.array([2, 4, 3, 5]),
    "s2a20": np.array([2, 3, 20]),
    "s2a12": np.array([2, 5, 12]),
}
SWAP = "Transpose<perm = [0, 2, 1, 3]>"


def layout(body: str, output: str = "float[2, 3, 4, 5] y") -> ir.Model:
    return parsed(f"layout (float[2, 3, 4, 5] x) => ({output}) {{ {body} }}", SHAPES)


@pytest.mark.parametrize(
    "body",
    [
        f"a = {SWAP}(x) b = {SWAP}(a)",
        "a = Transpose<perm = [3, 0, 1, 2]>(x) b = Transpose<perm = [1, 2, 3, 0]>(a)",
        "a = Transpose(x) b = Transpose(a)",
        "a = Reshape(x, s2a20) b = Reshape(a, s2345)",
        "b = Reshape(x, s2345)",
        f"a = Reshape(x, s2435) c = {SWAP}(a) d = {SWAP}(c) b = Reshape(d, s2345)",
        f"a = {SWAP}(x) c = Reshape(a, s2a20) d = Reshape(c, s2435) b = {SWAP}(d)",
        f"a = {SWAP}(x) c = {SWAP}(a) d = {SWAP}(c) b = {SWAP}(d)",
    ],
)
def test_layouts_that_undo_each_other_go(body: str) -> None:
    assert rewritten(layout(f"{body} y = Relu(b)"), RemoveLayoutPairsPass()) == {"Relu": 1}


@pytest.mark.parametrize(
    "body",
    [
        f"a = {SWAP}(x) b = Transpose<perm = [0, 1, 3, 2]>(a)",
        "a = Transpose<perm = [3, 0, 1, 2]>(x) b = Transpose<perm = [3, 0, 1, 2]>(a)",
        f"a = Transpose(x) b = {SWAP}(a)",
        "a = Reshape(x, s2a20) b = Reshape(a, s2a12)",
        f"a = {SWAP}(x) b = Reshape(a, s2345)",
        f"a = {SWAP}(x) c = Relu(a) b = {SWAP}(c)",
    ],
)
def test_layouts_that_change_something_stay(body: str) -> None:
    model = layout(f"{body} y = Flatten(b)", "float[N, M] y")
    nodes = Counter(node.op_type for node in model.graph)
    assert rewritten(model, RemoveLayoutPairsPass()) == nodes


def test_a_layout_used_elsewhere_stays_there() -> None:
    body = f"a = {SWAP}(x) b = {SWAP}(a) y = Relu(b) z = Relu(a)"
    model = layout(body, "float[2, 3, 4, 5] y, float[2, 4, 3, 5] z")
    assert rewritten(model, RemoveLayoutPairsPass()) == {"Transpose": 1, "Relu": 2}


@pytest.mark.parametrize(
    "body",
    [
        f"a = {SWAP}(x) y = {SWAP}(a)",
        "a = Reshape(x, s2a20) y = Reshape(a, s2345)",
        "y = Reshape(x, s2345)",
    ],
)
def test_a_layout_that_is_an_output_keeps_its_name(body: str) -> None:
    rewritten(layout(body), RemoveLayoutPairsPass())


@pytest.mark.parametrize(("rows", "num_reshapes"), [("T", 0), ("?", 2)])
def test_unknown_sizes_are_not_taken_for_equal(rows: str, num_reshapes: int) -> None:
    text = f"""layout (float[{rows}, 6] x) => (float[{rows}, 6] y)
        <float[{rows}, 2, 3] a, float[{rows}, 6] b>
        {{ a = Reshape(x, split) b = Reshape(a, whole) y = Relu(b) }}"""
    weights: Arrays = {"split": np.array([-1, 2, 3]), "whole": np.array([-1, 6])}
    model = parsed(text, weights)
    feeds: Arrays = {"x": np.ones((5, 6), np.float32)}
    assert rewritten(model, RemoveLayoutPairsPass(), feeds)["Reshape"] == num_reshapes
