"""Weights in the operator library's form, read number by number as its kernels read them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medusa_trt.export.quantization.library import (
    QuantizedWeight,
    count_packed_bytes,
    dequantize_weight,
    quantize_weight,
)

Floats = NDArray[np.float32]


def read_code(quantized: QuantizedWeight, i: int, o: int) -> tuple[int, float]:
    """The code and the scale of one input and output."""
    group, lane = divmod(o, 16)
    data = quantized.data[group]
    if quantized.bits == 8:
        code = int(data[i // 4 * 64 + lane * 4 + i % 4]) - 128
        return code, float(quantized.scales[group, i // 64, lane])
    pair, rest = divmod(i, 64)  # of two blocks of 32, the second one is in the upper halves
    byte = int(data[pair * 512 + rest % 32 // 4 * 64 + lane * 4 + i % 4])
    code = (byte >> 4 if rest >= 32 else byte & 15) - 8
    return code, float(quantized.scales[group, i // 32, lane])


def random_matrix(seed: int, num_inputs: int, num_outputs: int) -> Floats:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(num_inputs, num_outputs)) * 10.0 ** rng.integers(-3, 3)
    matrix[:, rng.random(num_outputs) < 0.1] = 0
    return matrix.astype(np.float32)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 130), st.integers(1, 40), st.sampled_from([8, 4]))
def test_each_weight_is_a_code_times_the_scale_of_its_block(
    seed: int, num_inputs: int, num_outputs: int, bits: int
) -> None:
    matrix = random_matrix(seed, num_inputs, num_outputs)
    quantized = quantize_weight(matrix, bits)
    stored = dequantize_weight(quantized, num_inputs, num_outputs)
    assert stored.shape == matrix.shape
    size = quantized.data.nbytes + quantized.scales.nbytes
    assert size == count_packed_bytes(num_inputs, num_outputs, bits)
    for i, o in np.ndindex(num_inputs, num_outputs):
        code, scale = read_code(quantized, i, o)
        assert stored[i, o] == np.float32(code * scale)
        if bits == 8:  # within half a step, but for the scale's rounding
            largest = np.abs(matrix[i // 64 * 64 : i // 64 * 64 + 64, o]).max()
            step = largest / 127 * 0.501 + 127 * (largest / 127 * 2.0**-11 + 2.0**-25)
            assert abs(stored[i, o] - matrix[i, o]) <= step
        elif scale != 0 and -8 < code < 7:
            assert abs(stored[i, o] - matrix[i, o]) <= abs(scale) * 0.501


@pytest.mark.parametrize("sign", [1, -1])
def test_four_bits_lose_less_than_the_scale_of_the_largest_would(sign: int) -> None:
    matrix = sign * random_matrix(1, 32, 16)
    stored = dequantize_weight(quantize_weight(matrix, 4), 32, 16)
    for column, kept in zip(matrix.T.astype(np.float64), stored.T, strict=True):
        largest = column[np.abs(column).argmax()]
        for scale in (np.float16(largest / 7), np.float16(largest / -8)):
            if scale != 0:
                codes = np.rint(column / float(scale)).clip(-8, 7)
                limit = np.square(codes * float(scale) - column).sum()
                assert np.square(kept - column).sum() <= limit * (1 + 1e-5)


def test_what_pads_a_matrix_is_nothing() -> None:
    for bits in (8, 4):
        quantized = quantize_weight(random_matrix(2, 70, 20), bits)
        whole = dequantize_weight(quantized, 128, 32)
        assert not whole[70:].any() and not whole[:, 20:].any() and whole[:70, :20].any()
