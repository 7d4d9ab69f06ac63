"""Each graph pass alone, on graphs small enough to read; ONNX Runtime computes both sides."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from support.tiny_models import llama_config, random_model
from transformers import PretrainedConfig, Qwen2Config

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.operator_attention import CachedAttention
from medusa_trt.export.passes import optimize
from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.passes.pack_qkv import PackQkvPass
from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass
from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass

MAX_DIFFERENCE = 1e-5
OPSETS = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
SKIP_NORM = "SkipSimplifiedLayerNormalization"

Arrays = dict[str, NDArray[np.generic]]


def parsed(text: str, weights: Arrays) -> ir.Model:
    """A model from ONNX's text form, all shapes annotated; unused weights are left out."""
    model = ir.from_onnx_text(f"{OPSETS}\n{text}")
    for value in {id(v): v for node in model.graph for v in node.inputs if v}.values():
        if value.name in weights:
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            value.shape = ir.Shape(weights[value.name].shape)
            value.type = ir.TensorType(value.const_value.dtype)
            model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


def rewritten(
    model: ir.Model, graph_pass: InPlacePass, feeds: Arrays | None = None
) -> Counter[str]:
    """Applies a pass, checks that results and interface stay, and counts the operators in use."""
    before = results(model, feeds or {})
    graph_pass(model)
    after = results(model, feeds or {})
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert np.abs(array - after[name]).max() <= MAX_DIFFERENCE
    assert not graph_pass(model).modified
    RemoveUnusedNodesPass()(model)
    return Counter(node.op_type for node in model.graph)


def results(model: ir.Model, feeds: Arrays) -> dict[str, NDArray[np.float32]]:
    """Outputs by name, on these inputs and random ones for the rest."""
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random = {
        value.name: rng.standard_normal(value.shape).astype(np.float32)
        for value in session.get_inputs()
        if value.name not in feeds
    }
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, random | feeds), strict=True))


ROTARY = """rotary (float[2, 3, 4] x, float[2, 3, 4] half) => (float[2, 3, 4] y) {
    a = Mul(x, cos)
    b = Mul(half, sin)
    c = Add(a, b)
    y = Relu(c)
}"""


def angles(cos: float, sin: float) -> Arrays:
    return {"cos": np.full((1, 1, 4), cos, np.float32), "sin": np.full((1, 1, 4), sin, np.float32)}


def test_a_rotation_by_zero_goes() -> None:
    assert rewritten(parsed(ROTARY, angles(1, 0)), RemoveIdentityRotaryPass()) == {"Relu": 1}


@pytest.mark.parametrize(("cos", "sin"), [(1, 1), (0.5, 0), (0, 0), (0, 1)])
def test_another_rotation_stays(cos: float, sin: float) -> None:
    counts = rewritten(parsed(ROTARY, angles(cos, sin)), RemoveIdentityRotaryPass())
    assert counts == {"Mul": 2, "Add": 1, "Relu": 1}


def test_a_rotation_of_some_dimensions_stays() -> None:
    weights = angles(1, 0)
    weights["cos"][..., 2] = 0.5
    assert rewritten(parsed(ROTARY, weights), RemoveIdentityRotaryPass())["Add"] == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("half) =>", "half, float[4] cos) =>"),
        ("x, float[2, 3, 4] half", "x, float[4] sin, float[2, 3, 4] half"),
    ],
)
def test_a_rotation_by_a_computed_angle_stays(old: str, new: str) -> None:
    text = ROTARY.replace(old, new)
    weights = {name: array for name, array in angles(1, 0).items() if f"float[4] {name}" not in new}
    assert rewritten(parsed(text, weights), RemoveIdentityRotaryPass())["Add"] == 1


def test_a_product_that_widens_its_input_stays() -> None:
    text = ROTARY.replace("[2, 3, 4] x", "[2, 3, 1] x")
    assert rewritten(parsed(text, angles(1, 0)), RemoveIdentityRotaryPass())["Add"] == 1


def test_a_rotation_that_is_an_output_keeps_its_name() -> None:
    text = ROTARY.replace("c = Add", "y = Add").replace("    y = Relu(c)\n", "")
    assert rewritten(parsed(text, angles(1, 0)), RemoveIdentityRotaryPass())["Add"] == 1


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


BIASED = Qwen2Config(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("config", [llama_config(), BIASED], ids=["llama", "qwen2"])
def test_the_optimized_graph_of_a_model(config: PretrainedConfig) -> None:
    module = VerifyModule(random_model(config), 64, CachedAttention)
    model = trace_verify(module, 23)
    counts = Counter(node.op_type for node in model.graph)
    num_layers = config.num_hidden_layers
    assert counts["GroupQueryAttention"] == num_layers
    assert counts["MatMul"] == 5 * num_layers
    assert counts[SKIP_NORM] == 2 * num_layers and counts["RMSNormalization"] == 1
    assert counts.keys().isdisjoint(
        {"Transpose", "Slice", "Neg", "Sin", "Cos", "Identity", "Split"}
    )
    for node in model.graph:
        shape = node.outputs[0].shape
        assert node.op_type != "Reshape" or (shape is not None and len(shape) < 3)
    optimize(model)
    assert Counter(node.op_type for node in model.graph) == counts
