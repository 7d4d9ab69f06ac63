"""Selections among bfloat16 numbers, against numpy."""

import numpy as np
import onnx_ir as ir
from support.graphs.graph_texts import parsed, results

from medusa_trt.export.passes.widen_selection import WidenSelectionPass

BFLOAT16 = ir.DataType.BFLOAT16
TEXT = f"""g (float[5, 40] x) => (int64[5] best, int64[5, 6] top)
    <bfloat16[5, 40] a> {{
    a = Cast<to = {int(BFLOAT16)}>(x)
    best = ArgMax<axis = -1, keepdims = 0>(a)
    values, top = TopK(a, k)
}}"""


def test_the_choices_are_those_among_the_rounded_numbers() -> None:
    model = parsed(TEXT, {"k": np.array([6])})
    assert WidenSelectionPass()(model).modified and not WidenSelectionPass()(model).modified
    selections = [node for node in model.graph if node.op_type in ("ArgMax", "TopK")]
    assert [v.dtype for node in selections for v in node.inputs[:1] if v] == [ir.DataType.FLOAT] * 2
    assert selections[1].outputs[0].dtype == ir.DataType.FLOAT
    # So close together that rounding makes many of them equal: then the first one is taken.
    x = 1 + np.random.default_rng(0).random((5, 40)).astype(np.float32) / 8
    rounded = x.astype(BFLOAT16.numpy()).astype(np.float32)
    expected = np.argsort(-rounded, axis=-1, kind="stable")[:, :6]
    found = results(model, {"x": x})
    assert np.array_equal(found["best"], expected[:, 0])
    assert np.array_equal(found["top"], expected)
    assert not np.array_equal(expected, np.argsort(-x, axis=-1)[:, :6])


def test_selections_among_wide_numbers_are_left_alone() -> None:
    text = TEXT.replace(f"to = {int(BFLOAT16)}", "to = 1").replace("bfloat16", "float")
    model = parsed(text, {"k": np.array([6])})
    assert not WidenSelectionPass()(model).modified
