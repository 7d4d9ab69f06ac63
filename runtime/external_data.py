"""Checks where the weights of a graph are stored, before an engine maps them.

The runtime has no ONNX library, so this module reads the few protobuf fields that it needs.
Sources: onnx.proto (field numbers), protobuf.dev/programming-guides/encoding.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from medusa_trt.errors import BundleError

_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13
_KEY, _VALUE = 1, 2
_LOCATION = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
"""Beginning of every reference to a file: the key of an entry.

Its tag and its length may be encoded in more bytes than necessary.
"""


def check_external_data(graph: Path, weights_file: str) -> None:
    """Checks that a graph's external data lie inside the bundle's weights file.

    Args:
        graph: an ONNX file in the bundle's folder.
        weights_file: name of the only file that the graph may refer to.

    Raises:
        BundleError: the graph refers to another file or beyond the end of this one, or is
            damaged.
    """
    data = graph.read_bytes()
    size_bytes = (graph.parent / weights_file).stat().st_size
    num_checked = 0
    try:
        for tensor in _read_submessages(data, _GRAPH, _INITIALIZER):
            entries = dict(
                _read_entry(entry) for entry in _read_submessages(tensor, _EXTERNAL_DATA)
            )
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


def _read_entry(message: bytes) -> tuple[bytes, bytes]:
    fields = dict(_read_fields(message))
    return fields.get(_KEY, b""), fields.get(_VALUE, b"")


def _read_submessages(message: bytes, field: int, *deeper: int) -> Iterator[bytes]:
    for number, content in _read_fields(message):
        if number == field:
            if deeper:
                yield from _read_submessages(content, *deeper)
            else:
                yield content


def _read_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the number of each field, and its bytes if it is length-delimited."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        content = b""
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind == 2:
            length, position = _read_varint(message, position)
            if position + length > len(message):
                raise ValueError("a field ends beyond the file")
            content = message[position : position + length]
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        yield tag >> 3, content


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
