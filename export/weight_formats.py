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


def use_one_format(format_: WeightFormat) -> ChooseFormat:
    """Makes a function that gives all weights the same format."""
    return lambda _: format_


def choose_by_outputs(
    layers: WeightFormat, unembedding: WeightFormat | None, vocab_size: int
) -> ChooseFormat:
    """Makes a function that gives one format to the layers and one to the unembedding."""
    return lambda weight: unembedding if weight.sizes[1] == vocab_size else layers
