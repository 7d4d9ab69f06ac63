"""Codes and scales that are made when they are read."""

import numpy as np
import onnx_ir as ir

from medusa_trt.export.quantization.lazy_quantization import quantize_when_read
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

CODES = np.arange(6, dtype=np.int8).reshape(2, 3)
SCALES = np.array([0.5, 0.25, 2], np.float16)


class Quantizer:
    """Counts its calls."""

    calls = 0

    def __call__(self) -> tuple[Array, Array]:
        self.calls += 1
        return CODES, SCALES


def make(quantizer: Quantizer, key: str = "w") -> tuple[LazyTensor, LazyTensor]:
    forms = ((2, 3), ir.DataType.INT8), ((3,), ir.DataType.FLOAT16)
    return quantize_when_read(quantizer, *forms, key)


def test_one_call_makes_both_if_the_codes_are_read_first() -> None:
    quantizer = Quantizer()
    codes, scales = make(quantizer)
    assert quantizer.calls == 0
    for calls in (1, 2):  # nothing is kept for a second time
        assert np.array_equal(codes.numpy(), CODES) and np.array_equal(scales.numpy(), SCALES)
        assert quantizer.calls == calls
        codes, scales = codes.rename("codes"), scales.rename("scales")


def test_scales_can_be_read_alone() -> None:
    quantizer = Quantizer()
    codes, scales = make(quantizer)
    assert np.array_equal(scales.stored(), SCALES) and np.array_equal(codes.stored(), CODES)
    assert quantizer.calls == 2


def test_forms_are_known_before_and_equal_keys_mean_equal_contents() -> None:
    quantizer = Quantizer()
    codes, scales = make(quantizer)
    assert (codes.sizes, codes.dtype) == ((2, 3), ir.DataType.INT8)
    assert (scales.sizes, scales.dtype) == ((3,), ir.DataType.FLOAT16)
    again, other = make(quantizer), make(quantizer, "v")
    assert (again[0].key, again[1].key) == (codes.key, scales.key)
    assert len({codes.key, scales.key, other[0].key, other[1].key}) == 4
    assert quantizer.calls == 0
