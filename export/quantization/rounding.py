"""The rounding of weights and activations that a format causes, without an export."""

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.export.quantization.grid import Grid
from medusa_trt.export.quantization.library import (
    BLOCK_SIZES,
    CODES,
    SHRINKS,
    count_packed_bytes,
    dequantize_weight,
    quantize_weight,
)
from medusa_trt.export.quantization.quantize_weights import (
    CODE_RANGES,
    INT4_SHRINKS,
    choose_block_size,
    dequantize_matrix,
    find_largest_block_size,
    quantize_matrix,
)
from medusa_trt.export.targets import Target
from medusa_trt.export.weight_formats import BITS, Format, WeightFormat


class LibraryRounding:
    """The operator library: weights by block, activations to 8 bits by row and block."""

    def round_weight(
        self, weight: NDArray[np.float32], format_: WeightFormat
    ) -> NDArray[np.float32]:
        """Rounds a matrix (inputs, outputs) and returns the values that remain."""
        return dequantize_weight(quantize_weight(weight, BITS[format_]), *weight.shape)

    def find_grid(self, num_inputs: int, format_: WeightFormat) -> Grid | None:
        """Finds the values that a matrix of so many inputs can hold; None for floating point."""
        bits = BITS[format_]
        low, high = CODES[bits]
        is_narrow = format_ == "int4"
        return Grid(
            block_size=BLOCK_SIZES[bits],
            low=low,
            high=high,
            edges=(low, high) if is_narrow else (high,),
            is_signed=is_narrow,
            shrinks=tuple(SHRINKS.tolist()) if is_narrow else (1.0,),
        )

    def round_inputs(self, x: torch.Tensor, format_: WeightFormat) -> torch.Tensor:
        """Rounds the inputs of a product, (..., inputs) float32, and returns what remains.

        They become 127ths of the largest of each row and block (native/kernels/kernels.h).
        """
        block = BLOCK_SIZES[BITS[format_]]
        num_inputs = x.shape[-1]
        padded = torch.nn.functional.pad(x, (0, -num_inputs % block)).unflatten(-1, (-1, block))
        largest = padded.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        kept: torch.Tensor = (padded * (127 / largest)).round_() * (largest / 127)
        return kept.flatten(-2).narrow(-1, 0, num_inputs)

    def count_bytes(self, num_inputs: int, num_outputs: int, format_: Format) -> int | None:
        """Counts the bytes of a matrix with its scales; None where the format does not fit it."""
        if format_ == "fp32":
            return 4 * num_inputs * num_outputs
        if format_ == "int8" or format_ == "int4":
            return count_packed_bytes(num_inputs, num_outputs, BITS[format_])
        return None


class StandardRounding:
    """`DequantizeLinear` before a product in half precision: weights alone are rounded."""

    def round_weight(
        self, weight: NDArray[np.float32], format_: WeightFormat
    ) -> NDArray[np.float32]:
        """See `LibraryRounding.round_weight`."""
        half = np.dtype(np.float16)
        block_size = choose_block_size(weight, half) if format_ == "int4" else None
        return dequantize_matrix(*quantize_matrix(weight, format_, block_size, half))

    def find_grid(self, num_inputs: int, format_: WeightFormat) -> Grid | None:
        """See `LibraryRounding.find_grid`."""
        if format_ == "fp8":
            return None
        low, high = CODE_RANGES[format_]
        block_size = find_largest_block_size(num_inputs) if format_ == "int4" else None
        return Grid(
            block_size=block_size or num_inputs,
            low=int(low),
            high=int(high),
            edges=(int(high),),
            is_signed=False,
            shrinks=tuple(INT4_SHRINKS.tolist()) if format_ == "int4" else (1.0,),
        )

    def round_inputs(self, x: torch.Tensor, format_: WeightFormat) -> torch.Tensor:
        """Returns the inputs as they are."""
        return x

    def count_bytes(self, num_inputs: int, num_outputs: int, format_: Format) -> int | None:
        """See `LibraryRounding.count_bytes`; scales are in half precision."""
        if format_ == "fp16":
            return 2 * num_inputs * num_outputs
        if format_ == "fp32":
            return None
        block_size = find_largest_block_size(num_inputs) if format_ == "int4" else num_inputs
        if block_size is None:
            return None
        num_scales = num_inputs // block_size * num_outputs
        return num_inputs * num_outputs * BITS[format_] // 8 + 2 * num_scales


Rounding = LibraryRounding | StandardRounding


def find_rounding(target: Target) -> Rounding:
    """Finds how the formats round on a target."""
    return LibraryRounding() if target.mixed.uses_library else StandardRounding()
