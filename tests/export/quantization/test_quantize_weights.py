"""Rounding of weights by the standard operators when they are written."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass, quantized_matrix
from medusa_trt.export.weight_formats import WeightFormat, one_format
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.weight_file import WeightFile


@pytest.mark.parametrize(("format_", "block_size"), [("int4", 128), ("int8", None), ("fp8", None)])
def test_a_devices_weights_are_quantized_when_they_are_written(
    format_: WeightFormat, block_size: int | None, tmp_path: Path
) -> None:
    array = np.random.default_rng(0).normal(size=(256, 96)).astype(np.float16)
    reads = []

    def stored() -> Array:
        reads.append(1)
        return array

    tensor = LazyTensor(stored, array.shape, "key", ir.DataType.FLOAT16, "w")
    x = ir.Value(name="x", shape=ir.Shape([1, 256]), type=ir.TensorType(ir.DataType.FLOAT16))
    weight = ir.Value(name="w", const_value=tensor)
    product = ir.Node("", "MatMul", [x, weight], name="product")
    product.outputs[0].name = "y"
    graph = ir.Graph(
        [x], product.outputs, nodes=[product], initializers=[weight], opset_imports={"": 23}
    )
    model = ir.Model(graph, ir_version=10)
    QuantizeWeightsPass(one_format(format_))(model)
    assert not reads
    graph.initializers.pop("w")
    WeightFile(tmp_path / "weights.data").take(model)
    assert len(reads) == 1  # the scales are kept from the codes
    found = [model.graph.initializers[f"product.{name}"] for name in ("codes", "scales")]
    for value, expected in zip(found, quantized_matrix(array, format_, block_size), strict=True):
        assert value.const_value is not None and value.const_value.dtype == value.dtype
        assert np.array_equal(value.const_value.numpy(), expected)
