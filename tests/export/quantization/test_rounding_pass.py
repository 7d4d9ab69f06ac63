"""The pass of a precision: which matrices it rounds, and to which format."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import Sequential
from support.graphs.graph_texts import parsed

from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass
from medusa_trt.export.quantization.rounding_pass import make_heads_pass, make_layers_pass
from medusa_trt.export.targets import TARGETS, Precision
from medusa_trt.runtime.engines.operators import DOMAIN

VOCAB_SIZE = 96
FORMATS = {
    ir.DataType.INT4: "int4",
    ir.DataType.INT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
}
PRECISIONS = [
    pytest.param(precision, id=f"{target.name}-{precision.name}")
    for target in TARGETS.values()
    for precision in target.precisions
]


def formats_after(graph_pass: ir.passes.PassBase | None, dtype: str) -> dict[str, str | None]:
    """Format of a layer's matrix and of the unembedding after a pass."""
    kind = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[dtype]
    text = f"""g ({kind}[2, 64] x) => ({kind}[2, 64] layer, {kind}[2, {VOCAB_SIZE}] logits)
        {{ layer = MatMul(x, w) logits = MatMul(x, u) }}"""
    numpy_type = ir.DataType[{"float32": "FLOAT"}.get(dtype, dtype.upper())].numpy()
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(64, 64)).astype(numpy_type),
        "u": rng.normal(size=(64, VOCAB_SIZE)).astype(numpy_type),
    }
    model = parsed(text, weights)
    assert graph_pass is not None
    graph_pass(model)
    found: dict[str, str | None] = {}
    for value in model.graph.outputs:
        node = value.producer()
        assert node is not None and node.inputs[1] is not None and value.name is not None
        source = node.inputs[1].producer()
        if node.domain == DOMAIN:
            found[value.name] = f"int{node.attributes['bits'].as_int()}"
        elif source is None:
            found[value.name] = None
        else:
            codes = source.inputs[0]
            assert codes is not None and codes.dtype is not None
            found[value.name] = FORMATS[codes.dtype]
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_and_unembedding_get_the_formats_of_a_precision(precision: Precision) -> None:
    graph_pass = make_layers_pass(precision, VOCAB_SIZE, None)
    assert (graph_pass is None) == (precision.layers is None)
    if graph_pass is not None:
        found = formats_after(graph_pass, precision.dtype)
        assert found == {"layer": precision.layers, "logits": precision.unembedding}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_matrix_of_the_heads_gets_their_format(precision: Precision) -> None:
    graph_pass = make_heads_pass(precision)
    assert (graph_pass is None) == (precision.heads is None)
    if graph_pass is not None:
        assert set(formats_after(graph_pass, precision.dtype).values()) == {precision.heads}


@pytest.mark.parametrize(
    ("target", "kind"), [("ort-cpu", Sequential), ("tensorrt", QuantizeWeightsPass)]
)
def test_a_plan_says_the_format_of_each_matrix(target: str, kind: type) -> None:
    graph_pass = make_layers_pass(
        TARGETS[target].mixed,
        VOCAB_SIZE,
        lambda weight: "int4" if weight.sizes[1] == VOCAB_SIZE else None,
    )
    assert isinstance(graph_pass, kind)
    dtype = TARGETS[target].mixed.dtype
    assert formats_after(graph_pass, dtype) == {"layer": None, "logits": "int4"}
