"""What formats make of matrices and inputs, against the operators that multiply by them."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.reference.linear import quantized_rows

from medusa_trt.export.quantization.library import BLOCK_SIZES, quantize_weight
from medusa_trt.export.quantization.quantize_weights import find_largest_block_size, quantize_matrix
from medusa_trt.export.quantization.rounding import LibraryRounding, StandardRounding
from medusa_trt.export.weight_formats import BITS, WeightFormat

Array = NDArray[np.float32]

LIBRARY_FORMATS: tuple[WeightFormat, ...] = ("int4", "int8")
STANDARD_FORMATS: tuple[WeightFormat, ...] = ("int4", "int8", "fp8")


def random_matrix(num_inputs: int, num_outputs: int) -> Array:
    rng = np.random.default_rng(num_inputs * 1000 + num_outputs)
    return rng.standard_t(3, (num_inputs, num_outputs)).astype(np.float32)


@given(st.integers(1, 150), st.integers(1, 40), st.sampled_from(LIBRARY_FORMATS))
def test_the_librarys_sizes_are_what_is_stored(
    num_inputs: int, num_outputs: int, format_: WeightFormat
) -> None:
    stored = quantize_weight(random_matrix(num_inputs, num_outputs), BITS[format_])
    size = LibraryRounding().count_bytes(num_inputs, num_outputs, format_)
    assert size == stored.data.nbytes + stored.scales.nbytes


@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from(STANDARD_FORMATS))
def test_standard_sizes_are_what_is_stored(
    num_blocks: int, num_outputs: int, format_: WeightFormat
) -> None:
    num_inputs = 16 * num_blocks
    block_size = find_largest_block_size(num_inputs) if format_ == "int4" else None
    matrix = random_matrix(num_inputs, num_outputs).astype(np.float16)
    codes, scales = quantize_matrix(matrix, format_, block_size)
    stored = codes.size * BITS[format_] // 8 + scales.nbytes
    assert StandardRounding().count_bytes(num_inputs, num_outputs, format_) == stored


def test_formats_that_a_matrix_cannot_have() -> None:
    assert StandardRounding().count_bytes(24, 8, "int4") is None
    assert StandardRounding().count_bytes(24, 8, "int8") == 24 * 8 + 16
    assert StandardRounding().count_bytes(24, 8, "fp16") == 24 * 8 * 2
    assert LibraryRounding().count_bytes(24, 8, "fp32") == 24 * 8 * 4
    assert LibraryRounding().count_bytes(24, 8, "fp16") is None


@pytest.mark.parametrize("format_", LIBRARY_FORMATS)
@pytest.mark.parametrize("num_inputs", [32, 64, 100, 192])
def test_inputs_are_rounded_as_the_library_rounds_them(
    format_: WeightFormat, num_inputs: int
) -> None:
    x = random_matrix(7, num_inputs)
    x[3] = 0
    found = LibraryRounding().round_inputs(torch.from_numpy(x)[None], format_)[0]
    expected = quantized_rows(x, BLOCK_SIZES[BITS[format_]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert not np.allclose(found.numpy(), x)


@pytest.mark.parametrize("format_", STANDARD_FORMATS)
def test_standard_weights_are_what_dequantize_linear_gives(format_: WeightFormat) -> None:
    matrix = random_matrix(96, 20)
    block_size = find_largest_block_size(96) if format_ == "int4" else None
    codes, scales = quantize_matrix(matrix.astype(np.float16), format_, block_size)
    attributes: dict[str, Any] = {"axis": 1}
    if block_size is not None:
        attributes = {"axis": 0, "block_size": block_size}
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"], **attributes)],
        "dequantize",
        [],
        [helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT16, [96, 20])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    outputs: Any = ReferenceEvaluator(model).run(None, {})
    expected: Array = outputs[0].astype(np.float32)
    found = StandardRounding().round_weight(matrix, format_)
    # The operator's result is in half precision.
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.abs(found - matrix).max() > 1e-3
