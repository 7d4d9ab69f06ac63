"""The manifest of an export: what it says of the model, the heads and the target."""

import hashlib
from importlib.metadata import version
from pathlib import Path

import pytest
from support.tiny_models import EOS_ID, HIDDEN_SIZE, VOCAB_SIZE

from medusa_trt.export.manifest import list_files, make_manifest
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.preparation import ExportParts, parts_from_options
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.runtime.manifest import GraphSpec, HeadsSpec
from medusa_trt.runtime.tensors import MANIFEST_FILE

needs_library = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")


def parts_of(model: Path, folder: Path, **options: object) -> ExportParts:
    values = {"model": str(model), "output": folder / "bundle", "tree": "chain-3"} | options
    return parts_from_options(ExportOptions(**values), lambda _: None)  # type: ignore[arg-type]


def test_the_model_and_its_heads_are_described(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path
) -> None:
    parts = parts_of(tiny_model, tmp_path, heads=tiny_heads, precision="fp32", max_length=128)
    graphs = {"heads": GraphSpec(file="heads.onnx", inputs=[], outputs=[])}
    manifest = make_manifest(parts, graphs)
    model = manifest.model
    assert (model.name, model.architecture) == (tiny_model.name, "llama")
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (2, HIDDEN_SIZE, VOCAB_SIZE)
    assert (model.num_kv_heads, model.head_dim, model.max_length) == (2, 16, 128)
    assert EOS_ID in model.eos_token_ids
    assert manifest.heads == HeadsSpec(
        num_heads=4, num_layers=2, top_k=10, draft_vocab_size=VOCAB_SIZE
    )
    assert (manifest.tree_name, manifest.graphs) == ("chain-3", graphs)
    assert manifest.versions["torch"] == version("torch")
    assert not manifest.verified and not manifest.files
    plain = make_manifest(parts_of(tiny_model, tmp_path, heads="none", tree="plain"), {})
    assert plain.heads is None


@pytest.mark.parametrize(
    ("target", "precision", "cache_dtype", "in_place", "min_rows"),
    [
        pytest.param("ort-cpu", "int8", "bfloat16", True, 1, marks=needs_library),
        ("ort-cpu", "fp32", "float32", True, 2),  # GroupQueryAttention wants two rows
        ("ort-cuda", "fp16", "float16", True, 1),
        ("tensorrt", "bf16", "bfloat16", True, 1),
        ("tensorrt-jetson", "int4", "float16", False, 1),  # ScatterND copies the cache
    ],
)
def test_the_target_says_how_the_bundle_is_run(
    target: str,
    precision: str,
    cache_dtype: str,
    in_place: bool,
    min_rows: int,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    parts = parts_of(tiny_model, tmp_path, heads="none", target=target, precision=precision)
    found = make_manifest(parts, {}).target
    assert (found.name, found.precision, found.cache_dtype) == (target, precision, cache_dtype)
    assert (found.cache_in_place, found.min_rows) == (in_place, min_rows)
    assert found.opset == parts.target.opset and found.prefill_chunk == parts.target.prefill_chunk
    assert found.operator_library == (precision == "int8")


def test_every_file_is_listed_with_its_hash_but_the_manifest(tmp_path: Path) -> None:
    contents = {"b.onnx": b"graph" * 1000, "a.json": b"{}", MANIFEST_FILE: b"old"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = list_files(tmp_path)
    assert list(files) == ["a.json", "b.onnx"]
    for name, spec in files.items():
        assert spec.size_bytes == len(contents[name])
        assert spec.sha256 == hashlib.sha256(contents[name]).hexdigest()
