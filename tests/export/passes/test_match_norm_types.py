"""Normalizations of a narrow input by a wide weight, against their definition."""

import numpy as np
import onnx_ir as ir
import onnxruntime
from support.graphs.graph_texts import parsed, rewritten
from support.reference.linear import rms_norm

from medusa_trt.export.passes.match_norm_types import MatchNormTypesPass

EPSILON = 0.001
SCALE = np.linspace(0.5, 2, 8)
TEXT = f"""norm (KIND[2, 3, 8] x) => (float[2, 3, 8] y)
    {{ n = RMSNormalization<axis = -1, epsilon = {EPSILON}>(x, scale)
       y = Cast<to = {int(ir.DataType.FLOAT)}>(n) }}"""


def test_a_narrow_input_is_normalized_in_the_weights_type() -> None:
    weights = {"scale": SCALE.astype(np.float32)}
    model = parsed(TEXT.replace("KIND", "float16"), weights)
    assert MatchNormTypesPass()(model).modified
    assert not MatchNormTypesPass()(model).modified
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float16)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (found,) = session.run(None, {"x": x})
    expected = rms_norm(x.astype(np.float64).reshape(-1, 8), weights["scale"], EPSILON)
    np.testing.assert_allclose(found.reshape(-1, 8), expected, rtol=1e-6)


def test_an_input_of_the_weights_type_is_left_alone() -> None:
    model = parsed(TEXT.replace("KIND", "float"), {"scale": SCALE.astype(np.float32)})
    assert rewritten(model, MatchNormTypesPass()) == {"RMSNormalization": 1, "Cast": 1}
