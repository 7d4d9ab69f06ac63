"""The formats that weights are rounded to, and the choice of a format for each weight."""

from collections.abc import Callable
from typing import Literal, TypeGuard

from medusa_trt.export.weights.lazy_tensor import LazyTensor

WeightFormat = Literal["int4", "int8", "fp8"]
"""How a weight is rounded depends on what multiplies by it: see `quantization/library.py` for the
operator library, and `quantization/quantize_weights.py` for the standard operators."""

FloatFormat = Literal["fp16", "fp32"]
"""The format of a weight that is not rounded: the target's type."""

Format = WeightFormat | FloatFormat

BITS: dict[WeightFormat, Literal[4, 8]] = {"int4": 4, "int8": 8, "fp8": 8}


def is_rounded(format_: str) -> TypeGuard[WeightFormat]:
    """Whether a weight of this format is rounded."""
    return format_ in BITS


ChooseFormat = Callable[[LazyTensor], WeightFormat | None]
"""Chooses the format of a product's (inputs, outputs) matrix; None leaves it as it is."""

ReportStored = Callable[[LazyTensor, bool], None]
"""Called for each stored (inputs, outputs) matrix, with whether it is stored exactly."""
