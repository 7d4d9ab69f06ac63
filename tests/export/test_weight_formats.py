"""The formats of weights, against what is stored in them."""

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from medusa_trt.export.quantization.quantize_weights import quantize_matrix
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.weight_formats import BITS, FloatFormat, Format, WeightFormat, is_rounded


@pytest.mark.parametrize("format_", get_args(WeightFormat))
def test_a_code_has_the_bits_of_its_format(format_: WeightFormat) -> None:
    weight = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float16)
    codes, _ = quantize_matrix(weight, format_, 32 if format_ == "int4" else None)
    assert ir.DataType.from_numpy(codes.dtype).bitwidth == BITS[format_]


def test_a_format_is_rounded_or_the_targets_own_type() -> None:
    rounded, whole = set(get_args(WeightFormat)), set(get_args(FloatFormat))
    assert {format_ for format_ in rounded | whole if is_rounded(format_)} == rounded == set(BITS)
    assert {name for part in get_args(Format) for name in get_args(part)} == rounded | whole


@pytest.mark.parametrize("name", TARGETS)
def test_targets_offer_these_formats_alone(name: str) -> None:
    for precision in TARGETS[name].precisions:
        for format_ in (precision.layers, precision.unembedding, precision.heads):
            assert format_ is None or is_rounded(format_)
