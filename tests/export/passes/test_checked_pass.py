"""Conditions of the passes: each fails on a graph that breaks it."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PassResult, PostconditionError, PreconditionError
from support.graphs.graph_texts import Arrays, parsed

from medusa_trt.export import passes, quantization
from medusa_trt.export.passes.chain_linears import ChainLinearsPass
from medusa_trt.export.passes.checked_pass import CheckedPass, find_used_nodes
from medusa_trt.export.passes.fold_transpose import FoldTransposePass
from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.passes.match_norm_types import MatchNormTypesPass
from medusa_trt.export.passes.name_products import NameProductsPass
from medusa_trt.export.passes.pack_qkv import PackQkvPass
from medusa_trt.export.passes.pack_split_qkv import PackSplitQkvPass
from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass
from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass
from medusa_trt.export.passes.unstack_weights import UnstackWeightsPass
from medusa_trt.export.passes.use_fast_selection import UseFastSelectionPass
from medusa_trt.export.passes.widen_floats import WidenFloatsPass
from medusa_trt.export.passes.widen_selection import WidenSelectionPass
from medusa_trt.export.quantization.quantize_embedding import QuantizeEmbeddingPass
from medusa_trt.export.quantization.quantize_linear import QuantizeLinearPass
from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.runtime.engines.operators import DOMAIN

MATRIX: Arrays = {"w": np.ones((64, 32), np.float32)}
PRODUCT = "g (float[2, 64] x) => (float[2, 32] y) { y = MatMul(x, w) }"
LOOKUP = "g (int64[2] input_ids) => (float[2, 32] y) { y = Gather(w, input_ids) }"
NORMALIZED = (
    "g (float[1, 3, 8] x) => (float[1, 3, 8] y)"
    " { s = Add(x, x) n = RMSNormalization<axis = -1>(s, w) y = Relu(n) }"
)


def doing_nothing(graph_pass: CheckedPass) -> CheckedPass:
    """The pass with the same conditions, but without its work."""

    def call(self: CheckedPass, model: ir.Model) -> PassResult:
        return PassResult(model, False)

    idle = type(type(graph_pass).__name__, (type(graph_pass),), {"call": call})
    graph_pass.__class__ = idle
    return graph_pass


def two_linears(*, in_order: bool = True, used: bool = True) -> ir.Model:
    """Two layers of the operator library, one behind the other."""
    x = ir.val("x", ir.DataType.FLOAT, [1, 64])
    first = ir.Node(DOMAIN, "Linear", [x], name="first")
    second = ir.Node(DOMAIN, "Linear", [first.outputs[0]], name="second")
    nodes = [first, second] if in_order else [second, first]
    outputs = [second.outputs[0] if used else first.outputs[0]]
    graph = ir.Graph([x], outputs, nodes=nodes, opset_imports={"": 23, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def attention(num_inputs: int) -> ir.Model:
    """An attention node whose queries, keys and values are products of one value."""
    names = "qkv"[:num_inputs]
    products = " ".join(f"{name} = MatMul(x, w{name})" for name in names)
    text = f"""g (float[1, 2, 8] x) => (float[1, 2, 8] y)
        {{ {products} y = com.microsoft.GroupQueryAttention({", ".join(names)}) }}"""
    return parsed(text, {f"w{name}": np.ones((8, 8), np.float32) for name in names})


def named_product() -> ir.Model:
    """A product by a weight of a module."""
    model = parsed(PRODUCT, MATRIX)
    weight = model.graph.initializers["w"]
    array = MATRIX["w"]
    weight.const_value = LazyTensor(
        lambda: array, array.shape, ("w",), sources=["model.layers.0.up_proj.weight"]
    )
    return model


def narrow_selection(*, used: bool = False) -> ir.Model:
    """A TopK of bfloat16 numbers."""
    x = ir.val("x", ir.DataType.BFLOAT16, [1, 8])
    top = ir.Node("", "TopK", [x, x], num_outputs=2, name="top")
    nodes = [top, ir.Node("", "Relu", [top.outputs[0]])] if used else [top]
    graph = ir.Graph([x], [top.outputs[1]], nodes=nodes, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def narrow_norm() -> ir.Model:
    model = parsed(NORMALIZED, {"w": np.ones(8, np.float32)})
    model.graph.initializers["w"].type = ir.TensorType(ir.DataType.FLOAT16)
    return model


STACK = "g (float[2, 8] x) => (float[2, 8] y) { m = Gather(w, i) y = MatMul(x, m) }"
UNDONE = "g (float[2, 3] x) => (float[2, 3] y) { a = Transpose(x) b = Transpose(a) y = Relu(b) }"
UNROTATED = """g (float[2, 4] x, float[2, 4] h) => (float[2, 4] y)
    { a = Mul(x, one) b = Mul(h, zero) c = Add(a, b) y = Relu(c) }"""
THREE = """g (float[2, 8] x) => (float[2, 8] p, float[2, 8] q, float[2, 8] r)
    { p = MatMul(x, a) q = MatMul(x, b) r = MatMul(x, c) }"""
SELECTION = "g (float[2, 9] x) => (int64[2] y) { y = ArgMax<axis = -1, keepdims = 0>(x) }"
TURNED = "g (float[2, 64] x) => (float[2, 32] y) { t = Transpose(w) y = MatMul(x, t) }"

LEFT_OVER: list[tuple[CheckedPass, Callable[[], ir.Model]]] = [
    (
        RemoveIdentityRotaryPass(),
        lambda: parsed(UNROTATED, {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}),
    ),
    (RemoveLayoutPairsPass(), lambda: parsed(UNDONE, {})),
    (PackQkvPass(), lambda: attention(3)),
    (
        PackSplitQkvPass(),
        lambda: parsed(THREE, {name: np.ones((8, 8), np.float32) for name in "abc"}),
    ),
    (FuseSkipNormPass(), lambda: parsed(NORMALIZED, {"w": np.ones(8, np.float32)})),
    (MatchNormTypesPass(), narrow_norm),
    (
        UnstackWeightsPass(),
        lambda: parsed(STACK, {"w": np.ones((3, 8, 8), np.float32), "i": np.array(1)}),
    ),
    (FoldTransposePass(), lambda: parsed(TURNED, {"w": np.ones((32, 64), np.float32)})),
    (UseFastSelectionPass(), lambda: parsed(SELECTION, {})),
    (WidenSelectionPass(), narrow_selection),
    (WidenFloatsPass(), narrow_selection),
    (NameProductsPass(), named_product),
    (ChainLinearsPass(), two_linears),
    (QuantizeEmbeddingPass(), lambda: parsed(LOOKUP, MATRIX)),
    (QuantizeLinearPass(lambda _: "int8"), lambda: parsed(PRODUCT, MATRIX)),
    (QuantizeWeightsPass(lambda _: "int4"), lambda: parsed(PRODUCT, MATRIX)),
]


@pytest.mark.parametrize(
    ("graph_pass", "make"), LEFT_OVER, ids=[type(row[0]).__name__ for row in LEFT_OVER]
)
def test_a_pass_that_leaves_its_work_undone_fails(
    graph_pass: CheckedPass, make: Callable[[], ir.Model]
) -> None:
    with pytest.raises(PostconditionError, match=f"{type(graph_pass).__name__} left"):
        doing_nothing(graph_pass)(make())


def test_every_pass_is_in_the_list() -> None:
    for package in (passes, quantization):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    made = CheckedPass.__subclasses__()
    for base in made:
        made += base.__subclasses__()
    names = {one.__name__ for one in made if one.__module__.startswith("medusa_trt.")}
    assert names - {"NodePass"} == {type(graph_pass).__name__ for graph_pass, _ in LEFT_OVER}


SHAPED = [
    (RemoveIdentityRotaryPass(), "Add"),
    (RemoveLayoutPairsPass(), "Reshape"),
    (FuseSkipNormPass(), "Add"),
    (UseFastSelectionPass(), "ArgMax"),
    (QuantizeLinearPass(lambda _: "int8"), "Add"),
]


@pytest.mark.parametrize(("graph_pass", "op_type"), SHAPED)
def test_a_pass_that_reads_shapes_refuses_a_graph_without(
    graph_pass: CheckedPass, op_type: str
) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [1, 8])
    node = ir.Node("", op_type, [x, x], name="bare")
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23})
    with pytest.raises(PreconditionError, match=f"shape of {op_type} 'bare'"):
        graph_pass(ir.Model(graph, ir_version=10))


def test_a_product_of_two_values_needs_no_shape() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [8, 8])
    node = ir.Node("", "MatMul", [x, x])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23})
    assert not QuantizeLinearPass(lambda _: "int8")(ir.Model(graph, ir_version=10)).modified


@pytest.mark.parametrize("graph_pass", [ChainLinearsPass(), RemoveLayoutPairsPass()])
def test_a_pass_that_walks_in_order_refuses_another_order(graph_pass: CheckedPass) -> None:
    with pytest.raises(PreconditionError, match="'second' comes before"):
        graph_pass(two_linears(in_order=False))


def test_a_layer_that_nobody_reads_is_refused() -> None:
    with pytest.raises(PreconditionError, match="'second' is not used"):
        ChainLinearsPass()(two_linears(used=False))


def test_attention_without_values_is_refused() -> None:
    with pytest.raises(PreconditionError, match="reads three inputs"):
        PackQkvPass()(attention(2))


def test_a_selection_whose_values_are_read_is_refused() -> None:
    with pytest.raises(PreconditionError, match="TopK 'top'"):
        WidenSelectionPass()(narrow_selection(used=True))


def test_a_gated_product_of_two_formats_is_refused() -> None:
    text = """g (float[2, 64] x) => (float[2, 32] y) {
        a = MatMul(x, gate) s = Sigmoid(a) b = Mul(a, s) c = MatMul(x, up) y = Mul(b, c) }"""
    weights: Arrays = {name: np.ones((64, 32), np.float32) for name in ("gate", "up")}
    formats = iter(["int8", "int4"] * 4)
    with pytest.raises(PreconditionError, match="one gated product"):
        QuantizeLinearPass(lambda _: next(formats))(parsed(text, weights))  # type: ignore[arg-type]


def test_nodes_in_use_are_those_that_outputs_depend_on() -> None:
    graph = two_linears(used=False).graph
    assert [node.name for node in graph if node in find_used_nodes(graph)] == ["first"]
