"""Codes and scales that are made when the file of the weights is written."""

from collections.abc import Callable, Hashable

import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor

Form = tuple[tuple[int, ...], ir.DataType]
"""Shape and type of a tensor."""


def quantize_when_read(
    quantize: Callable[[], tuple[Array, Array]], codes: Form, scales: Form, key: Hashable
) -> tuple[LazyTensor, LazyTensor]:
    """Makes tensors of codes and scales of these forms; equal contents have equal keys.

    Both are quantized by one call if they are read in this order.
    """
    kept: list[Array] = []

    def read_codes() -> Array:
        codes_array, scales_array = quantize()
        kept[:] = [scales_array]
        return codes_array

    def read_scales() -> Array:
        return kept.pop() if kept else quantize()[1]

    return (
        LazyTensor(read_codes, codes[0], ("codes", key), codes[1]),
        LazyTensor(read_scales, scales[0], ("scales", key), scales[1]),
    )
