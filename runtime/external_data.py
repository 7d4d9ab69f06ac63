"""Checks where a graph's weights lie, before an engine maps them.

The runtime has no ONNX library, so this reads the few protobuf fields that it needs. Source of the
field numbers: onnx.proto; of the encoding: protobuf.dev/programming-guides/encoding.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from medusa_trt.errors import BundleError

_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13
_KEY, _VALUE = 1, 2
_LOCATION = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
"""How every reference to a file begins: the key of an entry, whose tag and length may have bytes to
spare."""


def check_external_data(graph: Path, weights_file: str) -> None:
    """Checks that a graph's external data lie inside the bundle's file of weights.

    Args:
        graph: an ONNX file in the bundle's folder.
        weights_file: the only file that it may refer to.

    Raises:
        BundleError: it names another file, reaches beyond the end of this one, or is damaged.
    """
    data = graph.read_bytes()
    size_bytes = (graph.parent / weights_file).stat().st_size
    num_checked = 0
    try:
        for tensor in _submessages(data, _GRAPH, _INITIALIZER):
            entries = dict(_entry(entry) for entry in _submessages(tensor, _EXTERNAL_DATA))
            if entries:
                _check_range(graph, entries, weights_file, size_bytes)
                num_checked += 1
    except (IndexError, ValueError) as error:
        raise BundleError(f"{graph} is damaged ({error}): export the model again") from error
    if len(_LOCATION.findall(data)) != num_checked:
        raise BundleError(f"{graph} refers to a file outside its weights: export the model again")


def _check_range(
    graph: Path, entries: dict[bytes, bytes], weights_file: str, size_bytes: int
) -> None:
    location = entries.get(b"location", b"").decode("utf-8", "replace")
    if location != weights_file:
        raise BundleError(
            f"{graph} has weights in {location!r}: a path may not leave the bundle's {weights_file}"
        )
    offset, length = int(entries.get(b"offset", b"0")), int(entries.get(b"length", b"0"))
    if offset < 0 or length < 1 or offset + length > size_bytes:
        raise BundleError(
            f"{graph} has weights at {offset} to {offset + length} of {weights_file}, which has "
            f"{size_bytes} bytes: copy the bundle again or export it again"
        )


def _entry(message: bytes) -> tuple[bytes, bytes]:
    fields = dict(_fields(message))
    return fields.get(_KEY, b""), fields.get(_VALUE, b"")


def _submessages(message: bytes, field: int, *deeper: int) -> Iterator[bytes]:
    for number, content in _fields(message):
        if number == field:
            if deeper:
                yield from _submessages(content, *deeper)
            else:
                yield content


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Each field's number and, of length-delimited ones, its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        content = b""
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("a field ends beyond the file")
            content = message[position : position + length]
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        yield tag >> 3, content


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
