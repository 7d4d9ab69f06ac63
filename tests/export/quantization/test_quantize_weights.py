"""Rounding of weights by the standard operators when they are written."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass, quantize_matrix
from medusa_trt.export.weight_formats import WeightFormat
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
    QuantizeWeightsPass(lambda _: format_)(model)
    assert not reads
    graph.initializers.pop("w")
    WeightFile(tmp_path / "weights.data").take(model)
    assert len(reads) == 1  # the scales are kept from the codes
    found = [model.graph.initializers[f"product.{name}"] for name in ("codes", "scales")]
    for value, expected in zip(found, quantize_matrix(array, format_, block_size), strict=True):
        assert value.const_value is not None and value.const_value.dtype == value.dtype
        assert np.array_equal(value.const_value.numpy(), expected)


@pytest.mark.parametrize(
    ("format_", "block", "limit"), [("int4", 16, 0.5), ("int8", None, 0.5), ("fp8", None, None)]
)
def test_quantized_weights_are_the_nearest_codes(
    format_: str, block: int | None, limit: float | None
) -> None:
    weight = torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).half().numpy()
    weight[:, 3] = 0
    codes, scales = quantize_matrix(weight, format_, block)  # type: ignore[arg-type]
    wide = np.repeat(scales.astype(np.float32), block, 0) if block else scales.astype(np.float32)
    error = np.abs(codes.astype(np.float32) * wide - weight.astype(np.float32))
    assert scales.shape == ((4, 24) if block else (24,)) and scales.dtype == np.float16
    if limit is None:  # E4M3 has 3 bits of mantissa, and a subnormal step of 2^-9
        assert (error <= np.maximum(np.abs(weight) / 16, wide * 2.0**-10) * 1.01).all()
    else:  # a clipped outlier is off by more, but the search only clips where that helps
        inside = np.abs(weight / wide) <= 7
        assert (error <= limit * wide * 1.01)[inside if format_ == "int4" else ...].all()
    assert (codes[:, 3].astype(np.float32) == 0).all()
