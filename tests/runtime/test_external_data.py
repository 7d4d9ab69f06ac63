"""A graph may refer to bytes of its bundle's weights, and to nothing else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from medusa_trt.errors import BundleError
from medusa_trt.runtime.external_data import check_external_data

WEIGHTS = "weights.data"
NUM_BYTES = 64


def external(name: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_file(folder: Path, initializers: list[TensorProto], *, in_node: bool = False) -> Path:
    (folder / WEIGHTS).write_bytes(bytes(NUM_BYTES))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    attributes = {"value": initializers.pop()} if in_node else {"value_float": 1.0}
    nodes = [helper.make_node("Constant", [], ["y"], **attributes)]
    graph = helper.make_graph(nodes, "g", [], [output], initializers)
    path = folder / "graph.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_what_lies_in_the_weights_is_accepted(tmp_path: Path) -> None:
    inside = external("a", location=WEIGHTS, offset="16", length="48")
    inline = numpy_helper.from_array(np.arange(4, dtype=np.float32), "b")
    check_external_data(graph_file(tmp_path, [inside, inline]), WEIGHTS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../../etc/passwd", "offset": "0", "length": "16"}, "may not leave"),
        ({"location": "/etc/passwd", "offset": "0", "length": "16"}, "may not leave"),
        ({"location": "other.data", "offset": "0", "length": "16"}, "may not leave"),
        ({"offset": "0", "length": "16"}, "may not leave"),
        ({"location": WEIGHTS, "offset": "56", "length": "16"}, "at 56 to 72 .* has 64 bytes"),
        ({"location": WEIGHTS, "offset": "-16", "length": "16"}, "at -16 to 0"),
        ({"location": WEIGHTS, "offset": "0"}, "at 0 to 0"),
        ({"location": WEIGHTS, "offset": "nowhere", "length": "16"}, "damaged"),
    ],
)
def test_what_lies_elsewhere_is_refused(
    entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = graph_file(tmp_path, [external("a", **entries)])
    with pytest.raises(BundleError, match=message):
        check_external_data(path, WEIGHTS)


def test_references_outside_of_initializers_are_refused(tmp_path: Path) -> None:
    hidden = external("a", location="/etc/passwd", offset="0", length="16")
    path = graph_file(tmp_path, [hidden], in_node=True)
    assert b"/etc/passwd" in onnx.load(path, load_external_data=False).SerializeToString()
    with pytest.raises(BundleError, match="outside its weights"):
        check_external_data(path, WEIGHTS)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field whose length has a byte to spare."""
    length = bytes([len(content) & 127 | 128, len(content) >> 7 | 128, 0])
    return bytes([number << 3 | 2]) + length + content


@pytest.mark.parametrize("key_tag", [b"\x0a", b"\x8a\x00", b"\x8a\x80\x00"])
@pytest.mark.parametrize("key_length", [b"\x08", b"\x88\x00", b"\x88\x80\x80\x00"])
def test_a_hidden_reference_may_be_encoded_in_any_way(
    key_tag: bytes, key_length: bytes, tmp_path: Path
) -> None:
    """Parsers take lengths with more bytes than they need."""
    entry = key_tag + key_length + b"location" + field(2, b"/etc/passwd")
    tensor = external("a").SerializeToString() + field(13, entry)
    node = helper.make_node("Constant", [], ["y"]).SerializeToString()
    attribute = b"\x0a\x05value" + field(5, tensor) + b"\xa0\x01\x04"
    path = graph_file(tmp_path, [])
    path.write_bytes(path.read_bytes() + field(7, field(1, node + field(5, attribute))))
    tensor = onnx.load(path, load_external_data=False).graph.node[-1].attribute[0].t
    assert tensor.external_data[0].key == "location"
    with pytest.raises(BundleError, match="outside its weights"):
        check_external_data(path, WEIGHTS)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = graph_file(tmp_path, [external("a", location=WEIGHTS, offset="0", length="16")])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BundleError, match="damaged"):
        check_external_data(path, WEIGHTS)
