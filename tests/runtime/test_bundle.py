"""Bundles: what they list, and what is refused before anything is loaded."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest

from medusa_trt.errors import BundleError, EngineError, MedusaError, TreeError
from medusa_trt.runtime import bundle
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle, sha256_from_file
from medusa_trt.runtime.manifest import FileSpec, TensorSpec
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree

FILES = (
    *names.GRAPH_FILES.values(),
    names.WEIGHTS_FILE,
    names.TREE_FILE,
    names.TOKENIZER_FILE,
    names.TOKENIZER_CONFIG_FILE,
    names.CHAT_TEMPLATE_FILE,
    names.GENERATION_CONFIG_FILE,
)


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit_manifest(folder: Path, edit: Callable[[Any], object]) -> None:
    path = folder / names.MANIFEST_FILE
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and the manifest with it, as somebody who knows the format could."""
    path = folder / name
    path.write_bytes(content)
    spec = {"size_bytes": len(content), "sha256": sha256_from_file(path)}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: spec}))


def refused(
    folder: Path, message: str, *, check_hashes: bool = True, error: type[MedusaError] = BundleError
) -> None:
    with pytest.raises(error, match=message) as caught:
        Bundle.open(folder, check_hashes=check_hashes)
    assert "\n" not in str(caught.value)


def test_every_file_is_listed(tiny_bundle: Bundle) -> None:
    files = {path.name for path in tiny_bundle.path.iterdir()}
    assert files == {names.MANIFEST_FILE, *FILES} == {names.MANIFEST_FILE, *listed(tiny_bundle)}
    for name, spec in tiny_bundle.manifest.files.items():
        assert spec.size_bytes == (tiny_bundle.path / name).stat().st_size
        assert spec.sha256 == sha256_from_file(tiny_bundle.path / name)


def listed(bundle: Bundle) -> set[str]:
    return set(bundle.manifest.files)


@pytest.mark.parametrize("graph", names.GRAPH_FILES)
def test_every_tensor_is_listed_as_onnxruntime_has_it(tiny_bundle: Bundle, graph: str) -> None:
    session = onnxruntime.InferenceSession(tiny_bundle.graph_path(graph))
    spec = tiny_bundle.manifest.graphs[graph]
    assert spec.outputs
    for actual, wanted in (
        (session.get_inputs(), spec.inputs),
        (session.get_outputs(), spec.outputs),
    ):
        assert wanted == [
            TensorSpec(value.name, re.sub(r"tensor\((.*)\)", r"\1", value.type), value.shape)
            for value in actual
        ]


@pytest.mark.parametrize("check_hashes", [False, True])
def test_a_copy_opens(tiny_bundle: Bundle, copy: Path, check_hashes: bool) -> None:
    opened = Bundle.open(str(copy), check_hashes=check_hashes)
    assert opened.path == copy
    assert opened.manifest == tiny_bundle.manifest and opened.tree == tiny_bundle.tree


@pytest.mark.parametrize("where", ["nowhere", ".", "file"])
def test_what_has_no_manifest_is_no_bundle(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    refused(
        tmp_path / where, r"is not a bundle: it has no manifest\.json; make one with medusa-exp"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" + b"\0" * 99,
        b"[" * 10**5,
        b'{"format_version":"1"}',
        b'{"format_version":1}',
        b'{"format_version":1,"model":' + b"[" * 10**5,
        b'{"format_version":1,"\x80":0}',
    ],
)
def test_a_damaged_manifest_is_refused(content: bytes, copy: Path) -> None:
    (copy / names.MANIFEST_FILE).write_bytes(content)
    refused(copy, r"manifest\.json is damaged \(.*\): export the model again$")


@pytest.mark.parametrize("check_hashes", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, copy: Path, check_hashes: bool) -> None:
    (copy / name).unlink()
    refused(copy, rf"lacks {re.escape(name)}: copy the bundle again", check_hashes=check_hashes)
    (copy / name).mkdir()
    refused(copy, rf"lacks {re.escape(name)}: copy the bundle again", check_hashes=check_hashes)


@pytest.mark.parametrize("check_hashes", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_longer_file_is_named(name: str, copy: Path, check_hashes: bool) -> None:
    content = (copy / name).read_bytes()
    for changed in (content[:-1], b"", content + b"\0"):
        (copy / name).write_bytes(changed)
        sizes = f"has {len(changed)} bytes, the manifest says {len(content)}"
        refused(copy, f"{re.escape(name)} {sizes}", check_hashes=check_hashes)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_noticed(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 1
        (copy / name).write_bytes(content)
        refused(copy, f"{re.escape(name)} does not match its SHA-256")
        content[place] ^= 1
    (copy / name).write_bytes(content)
    Bundle.open(copy)


def test_a_path_that_cannot_be_is_an_error() -> None:
    refused(Path("x" * 5000), r"x/manifest.json: File name too long$")


def test_an_unreadable_file_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle, "sha256_from_file", fails)
    refused(copy, r"^cannot read .*/copy/\S+: Permission denied$")


ESCAPES = ("../outside.onnx", "/etc/passwd", "sub/inside.onnx", "./verify.onnx", "..", ".", "")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_listed_file_may_not_leave_the_bundle(name: str, copy: Path) -> None:
    (copy.parent / "outside.onnx").write_bytes(b"")
    (copy / "sub").mkdir()
    (copy / "sub" / "inside.onnx").write_bytes(b"")
    spec = {"size_bytes": 0, "sha256": sha256_from_file(copy / "sub" / "inside.onnx")}
    edit_manifest(copy, lambda manifest: manifest["files"].update({name: spec}))
    refused(copy, "a path may not leave the bundle")


@pytest.mark.parametrize("graph", [*names.GRAPH_FILES, "another"])
@pytest.mark.parametrize("name", [*ESCAPES, "unlisted.onnx"])
def test_a_graph_is_a_listed_file(graph: str, name: str, copy: Path) -> None:
    for place in (copy.parent / "outside.onnx", copy / "unlisted.onnx"):
        shutil.copy(copy / "verify.onnx", place)

    def edit(manifest: Any) -> None:
        manifest["graphs"][graph] = manifest["graphs"]["verify"] | {"file": name}

    edit_manifest(copy, edit)
    refused(copy, rf"manifest\.json lists no file for its {graph} graph: export the model again")


@pytest.mark.parametrize("change", [-1, 1, 10**30])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("model", "num_layers"),
        ("model", "num_kv_heads"),
        ("model", "head_dim"),
        ("model", "hidden_size"),
        ("model", "vocab_size"),
        ("heads", "num_heads"),
        ("heads", "top_k"),
    ],
)
def test_sizes_are_those_of_the_graphs(part: str, name: str, change: int, copy: Path) -> None:
    """Memory is taken for them."""

    def edit(manifest: Any) -> None:
        manifest[part][name] += change

    edit_manifest(copy, edit)
    refused(copy, rf"manifest\.json says {name} \d+, its graphs have \d+: export the model again")


def test_a_cache_beyond_all_memory_is_an_error_of_one_line(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["model"].update(max_length=1 << 50))
    message = r"^a KV cache of \d+ positions .* --max-length or fewer sequences$"
    with pytest.raises(EngineError, match=message):
        MedusaSession(copy)


@pytest.mark.parametrize("graph", names.GRAPH_FILES)
def test_every_graph_is_needed(graph: str, copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["graphs"].pop(graph))
    refused(copy, rf"lists no file for its {graph} graph")


@pytest.mark.parametrize(
    "name",
    [names.WEIGHTS_FILE, names.TREE_FILE, names.TOKENIZER_FILE, names.GENERATION_CONFIG_FILE],
)
def test_every_other_file_is_needed(name: str, copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["files"].pop(name))
    refused(copy, rf"does not list {re.escape(name)}: export the model again")


def test_a_tree_deeper_than_the_heads_is_refused(tiny_bundle: Bundle, copy: Path) -> None:
    depth = tiny_bundle.manifest.require_heads("the test").num_heads + 1
    replace_file(copy, names.TREE_FILE, chain_tree(depth).to_json().encode())
    refused(copy, f"has depth {depth} but there are {depth - 1} heads", error=TreeError)
    replace_file(copy, names.TREE_FILE, b'{"medusa_choices": [[10]]}')
    refused(copy, "child index 10 but each head offers 10", error=TreeError)
    replace_file(copy, names.TREE_FILE, b'{"medusa_choices": [[0, 0]]}')
    refused(copy, rf"{names.TREE_FILE}.*node \[0, 0\] has no parent", error=TreeError)


def test_optional_files_are_read_only_where_listed(copy: Path) -> None:
    assert Bundle.open(copy).read_optional(names.CHAT_TEMPLATE_FILE)
    edit_manifest(copy, lambda manifest: manifest["files"].pop(names.CHAT_TEMPLATE_FILE))
    assert Bundle.open(copy).read_optional(names.CHAT_TEMPLATE_FILE) is None
    assert Bundle.open(copy).read_optional("../copy/verify.onnx") is None
    replace_file(copy, names.CHAT_TEMPLATE_FILE, b"\xff")
    with pytest.raises(BundleError, match=r"chat_template\.jinja is damaged"):
        Bundle.open(copy).read_optional(names.CHAT_TEMPLATE_FILE)


@pytest.mark.parametrize(
    ("file", "matters"), [(names.TREE_FILE, False), (names.WEIGHTS_FILE, True)]
)
def test_a_digest_depends_on_all_files_but_the_tree(
    tiny_bundle: Bundle, file: str, matters: bool
) -> None:
    manifest = tiny_bundle.manifest
    files = manifest.files | {file: FileSpec(1, "0" * 64)}
    changed = dataclasses.replace(
        tiny_bundle, manifest=msgspec.structs.replace(manifest, files=files)
    )
    assert (changed.digest != tiny_bundle.digest) == matters
