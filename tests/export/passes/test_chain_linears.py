"""Chains of linear layers: bit for bit what the layers give one by one."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from support.graphs.chain_models import Layer, feeds_of, model_of, opened
from support.one_operator import session

from medusa_trt.export.passes.chain_linears import ChainLinearsPass
from medusa_trt.export.quantization.library import quantize_weight
from medusa_trt.runtime.engines.operators import find_library

pytestmark = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

MOST_LAYERS = 8

DECODER = (
    Layer(80, residual=-1),
    Layer(112, source=0, gated=True, normed=True),
    Layer(80, source=1, residual=0),
    Layer(160, source=2, normed=True, biased=True),
)
HEADS = (
    Layer(64, residual=-1),
    Layer(64, source=0, residual=0, biased=True),
    Layer(64, residual=-1),
    Layer(64, source=2),
    Layer(64),
)


def check_joined(model: ir.Model, num_rows: int, threads: int) -> Counter[str]:
    """Joins the layers, compares the results, and counts the operators."""
    feeds = feeds_of(model, num_rows)
    names = [value.name for value in model.graph.outputs]
    before = opened(model, threads).run(None, feeds)
    ChainLinearsPass()(model)
    after = opened(model, threads).run(None, feeds)
    assert names == [value.name for value in model.graph.outputs]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 17, 100])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_decoder_layers_products_become_one_node(num_rows: int, threads: int, bits: int) -> None:
    model = model_of(DECODER, 80, {2, 3}, bits)
    assert check_joined(model, num_rows, threads) == {"LinearChain": 1}


def test_layers_that_read_the_same_input_become_one_node() -> None:
    assert check_joined(model_of(HEADS, 64, {1, 3, 4}), 1, 2) == {"LinearChain": 1}


@st.composite
def _chains(draw: st.DrawFn) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for i in range(draw(st.integers(2, 11))):
        num_outputs = draw(st.sampled_from([48, 70]))
        fitting = [k for k in range(i) if layers[k].num_outputs == num_outputs]
        if num_outputs == 70:
            fitting.append(-1)
        layers.append(
            Layer(
                num_outputs,
                draw(st.integers(-1, i - 1)),
                draw(st.sampled_from([None, *fitting])),
                *(draw(st.booleans()) for _ in range(3)),
            )
        )
    return tuple(layers)


@settings(max_examples=30)
@given(_chains(), st.integers(1, 30), st.data())
def test_any_layers_give_the_same_bits_joined(
    layers: tuple[Layer, ...], num_rows: int, data: st.DataObject
) -> None:
    read = {layer.source for layer in layers} | {layer.residual for layer in layers}
    unread = set(range(len(layers))) - read
    results = data.draw(st.sets(st.integers(0, len(layers) - 1)))
    model = model_of(layers, 100, results | unread)
    counts = check_joined(model, num_rows, 2)
    assert counts.total() >= -(-len(layers) // MOST_LAYERS)


def test_calls_from_several_threads_end_and_agree() -> None:
    model = model_of(DECODER, 80, {2, 3})
    ChainLinearsPass()(model)
    session = opened(model, 2)
    feeds = feeds_of(model, 9)
    expected = session.run(None, feeds)
    with ThreadPoolExecutor(6) as pool:
        for results in pool.map(lambda _: session.run(None, feeds), range(300)):
            for one, other in zip(expected, results, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_result_between_two_chains_keeps_them_apart() -> None:
    """What is computed from a chain's result outside must not come back into the chain."""
    model = model_of((Layer(64), Layer(64, source=0)), 64, {0, 1})
    first, second = list(model.graph)
    outside = ir.node("Neg", [first.outputs[0]])
    outside.outputs[0].name = "outside"
    model.graph.insert_before(second, outside)
    second.replace_input_with(0, outside.outputs[0])
    assert not ChainLinearsPass()(model).modified


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source0": 0}, "reads one that comes later"),
        ({"residual0": 3}, "reads one that comes later"),
        ({"num_layers": 9}, "number of layers"),
        ({"result0": 1}, "a result is of no layer"),
        ({"num_outputs0": 40}, "another number of outputs"),
    ],
)
def test_wrong_chains_are_refused(changed: dict[str, int], message: str) -> None:
    quantized = quantize_weight(np.ones((64, 32), np.float32), 8)
    x = np.ones((2, 64), np.float32)
    layer = {"bits0": 8, "num_outputs0": 32, "activation0": 0, "gated0": 0, "epsilon0": 0.0}
    attributes = {"source0": -1, "residual0": -2, "num_layers": 1, "num_results": 1, "result0": 0}
    with pytest.raises(Exception, match=message):
        session(
            "LinearChain",
            ["x", "", "weight", "scales"],
            {"y": TensorProto.FLOAT},
            {"x": x},
            {"weight": quantized.data, "scales": quantized.scales},
            **{**layer, **attributes, **changed},
        ).run(None, {"x": x})
