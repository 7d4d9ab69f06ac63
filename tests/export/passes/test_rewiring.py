"""The parts that passes are made of: shapes, constants, and the replacing of nodes and values."""

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs.graph_texts import Arrays, parsed, results

from medusa_trt.export.passes.rewiring import (
    add_initializer,
    bypass,
    cast_input,
    find_product_weight,
    have_same_shape,
    read_constant,
    take_over,
)

WEIGHTS: Arrays = {
    "w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32),
    "wide": np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32),
    "tall": np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32),
    "stack": np.ones((2, 4, 4), np.float32),
    "bias": np.ones(6, np.float32),
}


def value_of(shape: list[int | str | None] | None) -> ir.Value:
    return ir.Value(name="v", shape=None if shape is None else ir.Shape(shape))


@pytest.mark.parametrize(
    ("left", "right", "are_same"),
    [
        ([2, "T", 8], [2, "T", 8], True),
        ([2, 3], [2, 3], True),
        ([2, 3], [3, 2], False),
        ([2, 3], [2, 3, 1], False),
        (["T"], ["U"], False),
        ([None], [None], False),  # two sizes of which nothing is known
        ([2], None, False),
        (None, None, False),
    ],
)
def test_shapes_are_the_same_only_if_every_size_is_known_to_be(
    left: list[int | str | None] | None, right: list[int | str | None] | None, are_same: bool
) -> None:
    assert have_same_shape(value_of(left), value_of(right)) == are_same
    assert not have_same_shape(value_of(left), None)


@pytest.mark.parametrize(
    "product",
    [
        "MatMul(x, w)",
        "MatMul(x, wide)",
        "Gemm(x, wide)",
        "Gemm(x, wide, bias)",
        "Gemm<transB = 1>(x, tall)",
        "Gemm<transB = 0, alpha = 1.0>(x, w)",
    ],
)
def test_the_weight_of_a_product_is_what_its_input_is_multiplied_by(product: str) -> None:
    model = parsed(f"g (float[3, 4] x) => (float[3, N] y) {{ y = {product} }}", WEIGHTS)
    weight = find_product_weight(next(iter(model.graph)))
    assert weight is not None and weight.sizes[0] == 4
    x = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
    found = results(model, {"x": x})["y"]
    added = 1 if "bias" in product else 0
    np.testing.assert_allclose(found, x @ weight.numpy() + added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        "MatMul(x, x)",
        "MatMul(w, x)",
        "MatMul(x, stack)",
        "Gemm<alpha = 2.0>(x, w)",
        "Gemm<beta = 0.5>(x, w, bias)",
        "Gemm<transA = 1>(x, w)",
        "Add(x, w)",
        "com.microsoft.MatMul(x, w)",
    ],
)
def test_other_nodes_have_no_such_weight(node: str) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
        f"g (float[4, 4] x) => (float[4, 4] y) {{ y = {node} }}"
    )
    for name in ("w", "stack", "bias"):
        for value in next(iter(model.graph)).inputs:
            if value is not None and value.name == name:
                value.const_value = ir.tensor(WEIGHTS[name])
    assert find_product_weight(next(iter(model.graph))) is None


def chain() -> ir.Model:
    """Two nodes, one behind the other."""
    return parsed("g (float[2, 4] x) => (float[2, 4] y) { a = Neg(x) b = Exp(a) y = Relu(b) }", {})


def test_a_node_that_is_bypassed_is_gone_and_its_users_read_the_source() -> None:
    model = chain()
    _, exp, _ = model.graph
    assert exp.inputs[0] is not None
    bypass(exp, exp.inputs[0])
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]
    x = np.array([[-1, 2, -3, 4], [5, -6, 7, -8]], np.float32)
    assert np.array_equal(results(model, {"x": x})["y"], np.maximum(-x, 0))


def test_a_constant_that_is_added_can_be_read() -> None:
    model = chain()
    value = add_initializer(model.graph, "added", ir.tensor(WEIGHTS["wide"]))
    assert model.graph.initializers["added"] is value
    assert value.shape == ir.Shape([4, 6]) and value.dtype == ir.DataType.FLOAT
    tensor = read_constant(value)
    assert tensor is not None and np.array_equal(tensor.numpy(), WEIGHTS["wide"])
    assert read_constant(None) is None and read_constant(model.graph.inputs[0]) is None


def test_a_value_that_takes_over_is_what_the_graph_gives() -> None:
    model = chain()
    relu = model.graph.node(2)
    new = ir.Node("", "Neg", [relu.inputs[0]])
    model.graph.insert_before(relu, new)
    take_over(relu.outputs[0], new.outputs[0])
    model.graph.remove(relu, safe=True)
    assert [value.name for value in model.graph.outputs] == ["y"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(results(model, {"x": x})["y"], -np.exp(-x), rtol=1e-6)


def test_the_first_input_is_cast_for_one_node_alone() -> None:
    model = parsed(
        "g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) { a = Neg(x) y = Abs(a) z = Neg(a) }",
        {},
    )
    user = model.graph.node(1)
    cast_input(model.graph, user, ir.DataType.INT64)
    user.outputs[0].dtype = ir.DataType.INT64
    value = user.inputs[0]
    assert value is not None and value.name == "y.input" and value.shape == ir.Shape([2, 4])
    x = np.full((2, 4), 1.75, np.float32)
    found = results(model, {"x": x})
    assert (found["y"] == 1).all() and (found["z"] == x).all()
