"""Weights that are read only when they are written: graph tensors with a recipe instead of data.

Equal recipes have equal keys, so equal weights of several graphs are found without reading them.
Nothing stays in memory after a use: the largest tensor bounds the memory of an export.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


class LazyTensor(ir.LazyTensor):
    """A tensor of a graph whose data is made anew at each use.

    Attributes:
        key: identifies the contents; equal contents have equal keys.
        sources: names of the tensors of the traced graph that it is made of.
        stored: gives the array in the type of the file it comes from, which may be narrower than
            the graph's, and may be a view of the file.
        quantization: how the checkpoint stores it, if it is quantized there; None for a tensor that
            is made of several.
    """

    def __init__(
        self,
        stored: Callable[[], Array],
        shape: Sequence[int],
        key: Hashable,
        dtype: ir.DataType = ir.DataType.FLOAT,
        name: str | None = None,
        sources: Sequence[str] = (),
        quantization: str | None = None,
    ) -> None:
        """Stores the recipe; see the attributes. `stored` makes an array of this shape.

        By default the name of the tensor is its only source.
        """
        super().__init__(self._convert, dtype, ir.Shape(shape), name=name)
        self.stored = stored
        self.key = key
        self.sources = tuple(sources) or ((name,) if name else ())
        self.quantization = quantization

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape as numbers."""
        return tuple(self.shape.numpy())

    def rename(self, name: str) -> "LazyTensor":
        """Makes the same tensor with another name."""
        parts = self.stored, self.sizes, self.key, self.dtype, name
        return LazyTensor(*parts, self.sources, self.quantization)

    def convert(self, dtype: ir.DataType) -> "LazyTensor":
        """Makes the same tensor with another data type in the graph."""
        parts = self.stored, self.sizes, self.key, dtype, self.name
        return LazyTensor(*parts, self.sources, self.quantization)

    def _convert(self) -> ir.TensorProtocol:
        array = self.stored()
        dtype = self.dtype.numpy()
        return ir.tensor(np.ascontiguousarray(array, dtype), name=self.name)


def wrap_tensor(tensor: ir.TensorProtocol) -> LazyTensor:
    """Wraps a tensor of a graph; one that is in memory gets its identity as key."""
    if isinstance(tensor, LazyTensor):
        return tensor
    # The recipe keeps the tensor alive, so no other tensor can get the same identity.
    key = "memory", id(tensor)
    return LazyTensor(tensor.numpy, tensor.shape.numpy(), key, tensor.dtype, tensor.name)


def transpose_tensor(tensor: ir.TensorProtocol, axes: Sequence[int] = (1, 0)) -> LazyTensor:
    """Reorders the axes of a tensor without reading it."""
    source = wrap_tensor(tensor)
    shape = [source.sizes[axis] for axis in axes]
    key = ("transposed", tuple(axes), source.key)
    if tuple(axes) == (1, 0) and isinstance(source.key, tuple) and source.key[:2] == key[:2]:
        key = source.key[2]
    return LazyTensor(
        lambda: source.stored().transpose(axes), shape, key, source.dtype, sources=source.sources
    )


def select_matrix(tensor: ir.TensorProtocol, index: int) -> LazyTensor:
    """Selects one of the matrices that are stacked along the first axis."""
    source = wrap_tensor(tensor)
    key = ("selected", index, source.key)
    return LazyTensor(lambda: source.stored()[index], source.sizes[1:], key, source.dtype)


def select_rows(tensor: ir.TensorProtocol, rows: NDArray[np.int64]) -> LazyTensor:
    """Selects rows, by their indices, without reading the tensor."""
    source = wrap_tensor(tensor)
    key = ("rows", rows.tobytes(), source.key)
    shape = (len(rows), *source.sizes[1:])
    return LazyTensor(lambda: source.stored()[rows], shape, key, source.dtype)


def stack_tensors(tensors: Sequence[ir.TensorProtocol]) -> LazyTensor:
    """Stacks tensors along a new first axis."""
    parts = [wrap_tensor(tensor) for tensor in tensors]
    key = ("stacked", tuple(part.key for part in parts))
    return LazyTensor(
        lambda: np.stack([part.stored() for part in parts]),
        (len(parts), *parts[0].sizes),
        key,
        parts[0].dtype,
    )


def concatenate_tensors(tensors: Sequence[ir.TensorProtocol], axis: int) -> LazyTensor:
    """Joins tensors along an axis."""
    parts = [wrap_tensor(tensor) for tensor in tensors]
    shape = list(parts[0].sizes)
    shape[axis] = sum(part.sizes[axis] for part in parts)
    key = ("concatenated", axis, tuple(part.key for part in parts))
    return LazyTensor(
        lambda: np.concatenate([part.stored() for part in parts], axis=axis),
        shape,
        key,
        parts[0].dtype,
        sources=[source for part in parts for source in part.sources],
    )
