"""The weight file of a bundle: all graphs share it, and it is written tensor by tensor."""

from collections.abc import Hashable
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor, wrap_tensor

_INLINE_LIMIT_BYTES = 1 << 10
_CHUNK_BYTES = 16 << 20
_PAGE_BYTES = 1 << 16
"""Large tensors begin at a multiple of this, so that they can be mapped into memory."""

_LINE_BYTES = 64


class WeightFile:
    """Moves weights out of graphs into one file; equal weights are written once."""

    def __init__(self, path: Path) -> None:
        """Takes the path of a file that does not exist yet."""
        self._path = path
        self._written: dict[Hashable, ir.ExternalTensor] = {}

    def take(self, model: ir.Model) -> None:
        """Writes the large weights of a graph; the graph then refers to the file."""
        with self._path.open("ab") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes <= _INLINE_LIMIT_BYTES:
                    continue
                source = wrap_tensor(tensor)
                content: Hashable = source.key
                if isinstance(content, tuple) and content[0] == "memory":
                    content = source.sizes, sha256(source.tobytes()).digest()
                key = source.dtype, content
                if key not in self._written:
                    self._written[key] = self._append(file, source, value.name or "")
                value.const_value = self._written[key]

    def _append(self, file: BinaryIO, tensor: LazyTensor, name: str) -> ir.ExternalTensor:
        boundary = _PAGE_BYTES if tensor.nbytes >= _PAGE_BYTES else _LINE_BYTES
        file.write(bytes(-file.tell() % boundary))
        offset = file.tell()
        if tensor.dtype.bitwidth < 8:
            file.write(tensor.tobytes())
        else:
            write_array(file, tensor.stored(), tensor.dtype.numpy())
        assert file.tell() - offset == tensor.nbytes
        return ir.ExternalTensor(
            self._path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.sizes),
            name=name,
            base_dir=self._path.parent,
        )


def write_array(file: BinaryIO, array: Array, dtype: np.dtype[Any]) -> None:
    """Writes an array as another data type, converting one part at a time."""
    if array.ndim == 0:
        array = array[None]
    row_bytes = max(1, array[:1].size * np.dtype(dtype).itemsize)
    num_rows = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(array), num_rows):
        part = np.ascontiguousarray(array[start : start + num_rows], dtype)
        file.write(part.reshape(-1).view(np.uint8).data)
