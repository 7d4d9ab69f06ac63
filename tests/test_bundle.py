"""Opening bundles: whole ones, and all the ways in which one can be broken."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest

from medusa_trt.errors import BundleError, TreeError
from medusa_trt.runtime import bundle as names
from medusa_trt.runtime.bundle import Bundle, manifest_from_json

FILES = (*names.GRAPH_FILES.values(), names.WEIGHTS_FILE, names.TREE_FILE, names.TOKENIZER_FILE)
ONNX_TYPES = {"int64": "int64", "float": "float", "bool": "bool", "double": "double"}


@pytest.fixture
def copied(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / names.MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path, *, check_hashes: bool = True) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, check_hashes=check_hashes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_manifest_survives_a_round_trip(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest_from_json(manifest.to_json(), "x") == manifest
    assert Bundle.open(tiny_bundle.path).tree == tiny_bundle.tree
    assert manifest.verified.keys() == {"text", "tree", "batch"}


@pytest.mark.parametrize("graph", names.GRAPH_FILES)
def test_the_manifest_lists_every_tensor_as_the_graph_has_it(
    tiny_bundle: Bundle, graph: str
) -> None:
    session = onnxruntime.InferenceSession(tiny_bundle.graph_path(graph))
    spec = tiny_bundle.manifest.graphs[graph]
    for listed, found in (
        (spec.inputs, session.get_inputs()),
        (spec.outputs, session.get_outputs()),
    ):
        assert [tensor.name for tensor in listed] == [tensor.name for tensor in found]
        for tensor, real in zip(listed, found, strict=True):
            assert f"tensor({ONNX_TYPES[tensor.dtype]})" == real.type
            assert tensor.shape == real.shape


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_noticed(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    assert name in refusal(copied) and "SHA-256" in refusal(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed_without_hashing(copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:-1])
    message = refusal(copied, check_hashes=False)
    assert name in message and str(len(data) - 1) in message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert name in refusal(copied, check_hashes=False)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "not a bundle" in refusal(tmp_path)
    assert "not a bundle" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": "1"}', '{"a": 1}'])
def test_a_manifest_that_is_none_is_refused(copied: Path, text: str) -> None:
    (copied / names.MANIFEST_FILE).write_text(text)
    assert "damaged" in refusal(copied)


def test_another_format_version_says_so(copied: Path) -> None:
    edit_manifest(copied, format_version=99)
    assert "format version 99" in refusal(copied)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"model": 3}, {"files": None}])
def test_unknown_and_mistyped_fields_are_refused(copied: Path, change: dict[str, Any]) -> None:
    edit_manifest(copied, **change)
    assert "damaged" in refusal(copied)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file"])
def test_no_file_may_lie_outside_the_bundle(copied: Path, name: str) -> None:
    (copied.parent / "outside").write_text("x")
    files = json.loads((copied / names.MANIFEST_FILE).read_text())["files"]
    edit_manifest(copied, files=files | {name: {"size_bytes": 1, "sha256": "0" * 64}})
    assert "leave the bundle" in refusal(copied)


@pytest.mark.parametrize("file", ["../verify.onnx", "/tmp/verify.onnx", "unlisted.onnx"])
def test_no_graph_may_be_an_unlisted_file(copied: Path, file: str) -> None:
    graphs = json.loads((copied / names.MANIFEST_FILE).read_text())["graphs"]
    graphs["verify"]["file"] = file
    edit_manifest(copied, graphs=graphs)
    assert "verify" in refusal(copied)


def test_a_tree_deeper_than_the_heads_is_refused(copied: Path, tiny_bundle: Bundle) -> None:
    heads = msgspec.structs.replace(tiny_bundle.manifest.heads, num_heads=2)
    edit_manifest(copied, heads=msgspec.to_builtins(heads))
    with pytest.raises(TreeError, match="there are 2 heads"):
        Bundle.open(copied)
