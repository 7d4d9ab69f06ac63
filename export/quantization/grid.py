"""The values that a rounded matrix can hold, and matrices of such values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.export.quantization.exact_scales import find_exact_scales

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Whole numbers from `low` to `high` times a float16 scale for each block of inputs.

    Attributes:
        block_size: inputs that share a scale; the last block may have fewer.
        low: the smallest code.
        high: the largest code.
        edges: codes that the value of largest magnitude may be mapped to.
        is_signed: whether a scale may be negative, as that of a value that is mapped to an edge of
            the other sign.
        shrinks: factors on such a scale that are worth a try; smaller ones clip.
    """

    block_size: int
    low: int
    high: int
    edges: tuple[int, ...]
    is_signed: bool
    shrinks: tuple[float, ...]

    def list_scales(self, blocks: Floats) -> Floats:
        """Lists scales worth a try, (tries, outputs) without zeros, for (outputs, block) values."""
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1)[:, 0]
        if not self.is_signed:
            largest = np.abs(largest)
        tries = [largest / edge * shrink for shrink in self.shrinks for edge in self.edges]
        stored = np.stack(tries).astype(np.float16).astype(np.float32)
        return np.where(stored == 0, np.float32(1), stored)

    def count_blocks(self, num_inputs: int) -> int:
        """Counts the scales of an output."""
        return -(-num_inputs // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedMatrix:
    """A matrix of values of a grid, in the layout of a checkpoint.

    Attributes:
        codes: (outputs, inputs) int8.
        scales: (outputs, blocks) float16.
        block_size: inputs that share a scale; the last block may have fewer.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    block_size: int

    def compute_values(self) -> Floats:
        """Computes the (outputs, inputs) values, which float32 holds exactly."""
        scales = np.repeat(self.scales.astype(np.float32), self.block_size, axis=1)
        values: Floats = self.codes * scales[:, : self.codes.shape[1]]
        return values


def matrix_from_values(values: Floats, grid: Grid) -> RoundedMatrix:
    """Finds codes and scales of (outputs, inputs) values of a grid.

    They are those that an export finds when it stores these values, see `find_exact_scales`: where
    all codes of a block have a common divisor, its scale is larger.
    """
    num_outputs, num_inputs = values.shape
    num_blocks = grid.count_blocks(num_inputs)
    padded = np.zeros((num_outputs, num_blocks * grid.block_size), np.float32)
    padded[:, :num_inputs] = values
    blocks = padded.reshape(num_outputs, num_blocks, grid.block_size)
    dtype = np.dtype(np.float16)
    scales = find_exact_scales(blocks, grid.low, grid.high, dtype, negative=grid.is_signed)
    assert not np.isnan(scales).any(), "values beside the grid"
    codes = np.rint(blocks / np.where(scales == 0, np.float32(1), scales)[..., None])
    return RoundedMatrix(
        codes=codes.reshape(padded.shape)[:, :num_inputs].astype(np.int8),
        scales=scales.astype(np.float16),
        block_size=grid.block_size,
    )
