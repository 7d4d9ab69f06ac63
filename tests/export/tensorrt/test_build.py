"""Engines that TensorRT-RTX builds without a GPU."""

import json
import shutil
from pathlib import Path

import msgspec
import onnx_ir as ir
import pytest
import torch
from support.built_engines import needs_rtx
from support.model_families import FAMILIES, weighted_model
from support.tiny_models import (
    TINY_HEADS,
    head_tensors,
    llama_config,
    make_byte_tokenizer,
    save_tiny_heads,
)

from medusa_trt.errors import BuildError
from medusa_trt.export.comparison.logits import find_max_relative_error
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.tensorrt.build import build_engines
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import record_from_folder
from medusa_trt.runtime.manifest import TensorSpec

CAPABILITIES = ("8.6", "12.0")

ALL = [
    (family, target.name, precision.name)
    for family in FAMILIES
    for target in TARGETS.values()
    for precision in target.precisions
    if target.product is not None
    and target.name != "tensorrt-rtx"  # its graphs are those of tensorrt
    and (precision.name in ("fp16", "int4") or family == "llama")
]


def exported(family: str, target: str, precision: str, folder: Path) -> Bundle:
    weighted_model(FAMILIES[family]).save_pretrained(folder / "model")
    make_byte_tokenizer().save_pretrained(folder / "model")
    options = ExportOptions(
        model=str(folder / "model"),
        heads=save_tiny_heads(folder / TINY_HEADS, head_tensors(vocab_size=None)),
        tree="chain-3",
        output=folder / "bundle",
        max_length=256,
        target=target,
        precision=precision,
    )
    return export_bundle(options, progress=lambda _: None)


def check_built(bundle: Bundle) -> None:
    """Builds for two GPUs and compares the record with the bundle."""
    capabilities = CAPABILITIES if bundle.manifest.target.precision != "fp8" else ("8.9", "12.0")
    options = BuildOptions(
        target="tensorrt-rtx", compute_capabilities=capabilities, max_length=128, max_batch_size=2
    )
    if bundle.manifest.target.name == "tensorrt-jetson":
        options = BuildOptions(
            target="tensorrt-rtx", compute_capabilities=capabilities, max_length=128
        )
    folder = build_engines(bundle, options, progress=lambda _: None)
    record = record_from_folder(folder)
    assert record.compute_capabilities == list(capabilities)
    assert record.engines.keys() == {"verify", "heads", "reduce"}
    assert [profile.name for profile in record.engines["verify"].profiles] == ["tree", "prefill"]
    for engine in record.engines.values():
        assert (folder / engine.file).stat().st_size == engine.size_bytes > 100_000


@needs_rtx
def test_the_engines_build(trt_bundle: Bundle) -> None:
    check_built(trt_bundle)


@needs_rtx
def test_a_merged_tree_builds(trt_bundle: Bundle, tmp_path: Path) -> None:
    options = BuildOptions(
        target="tensorrt-rtx",
        compute_capabilities=("8.6",),
        max_length=128,
        merge_tree=True,
        output=tmp_path / "engines",
    )
    record = record_from_folder(build_engines(trt_bundle, options, progress=lambda _: None))
    assert record.engines.keys() == {"verify", "prefill", "heads", "reduce"}
    assert [profile.name for profile in record.engines["verify"].profiles] == ["tree"]
    assert [profile.name for profile in record.engines["prefill"].profiles] == ["tree", "prefill"]


@needs_rtx
def test_the_builders_options_are_taken(trt_bundle: Bundle, tmp_path: Path) -> None:
    options = BuildOptions(
        target="tensorrt-rtx",
        compute_capabilities=("8.6",),
        max_length=128,
        workspace_mib=512,
        optimization_level=0,
        output=tmp_path / "engines",
    )
    record = record_from_folder(build_engines(trt_bundle, options, progress=lambda _: None))
    assert not (record.refittable or record.stripped or record.weight_streaming)
    assert (record.options["workspace_mib"], record.options["optimization_level"]) == (512, 0)


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="it builds where there is a GPU")
def test_options_for_weights_need_a_gpu(trt_bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT-RTX runs kernels when it makes an engine whose weights can be replaced."""
    options = BuildOptions(
        target="tensorrt-rtx",
        compute_capabilities=("8.6",),
        max_length=128,
        refittable=True,
        output=tmp_path / "engines",
    )
    with pytest.raises(BuildError, match="run this on a machine with a GPU, or leave the option"):
        build_engines(trt_bundle, options, progress=lambda _: None)
    assert not list(tmp_path.iterdir())


@needs_rtx
def test_the_jetson_engines_build(jetson_bundle: Bundle) -> None:
    check_built(jetson_bundle)


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(("family", "target", "precision"), ALL)
def test_every_family_builds(family: str, target: str, precision: str, tmp_path: Path) -> None:
    bundle = exported(family, target, precision, tmp_path)
    if precision in ("fp16", "bf16"):
        limit = find_max_relative_error(precision, family in ("mixtral", "qwen3_moe"))
        assert all(each.relative_error < limit for each in bundle.manifest.verified.values())
    check_built(bundle)


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(("target", "precision"), [("tensorrt", "fp16"), ("tensorrt", "int8")])
def test_the_demo_model_builds(target: str, precision: str, tmp_path: Path) -> None:
    options = ExportOptions(
        model="smollm2-135m", target=target, precision=precision, output=tmp_path / "bundle"
    )
    check_built(export_bundle(options, progress=lambda _: None))


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-jetson"])
def test_the_demo_models_shape_builds_at_four_bits(target: str, tmp_path: Path) -> None:
    """With random weights: its own are too few for so few bits, and are refused."""
    shape = llama_config(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    shape.save_pretrained(tmp_path / "shape")
    options = ExportOptions(
        model=str(tmp_path / "shape"),
        target=target,
        precision="int4",
        random_weights=True,
        output=tmp_path / "bundle",
    )
    check_built(export_bundle(options, progress=lambda _: None))


def changed_copy(bundle: Bundle, folder: Path, edit: str) -> Bundle:
    """A bundle whose verify graph has something that TensorRT refuses."""
    shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns("engines"))
    path, manifest = folder / "verify.onnx", bundle.manifest
    model = ir.load(path)
    if edit == "operator":
        next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "NoSuchOp"
    else:
        extra = ir.Value(name="extra", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
        model.graph.inputs.append(extra)
        verify = manifest.graphs["verify"]
        inputs = [*verify.inputs, TensorSpec("extra", "float", [2])]
        graphs = manifest.graphs | {"verify": msgspec.structs.replace(verify, inputs=inputs)}
        manifest = msgspec.structs.replace(manifest, graphs=graphs)
    ir.save(model, path)
    return Bundle(folder, manifest, bundle.tree)


@needs_rtx
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("operator", r"refuses node '\S*Sigmoid\S*' \(NoSuchOp\): the operator is unknown; export"),
        ("input", "Unused Input: extra"),
    ],
)
def test_a_failed_build_leaves_the_bundle_as_it_was(
    trt_bundle: Bundle, edit: str, message: str, tmp_path: Path
) -> None:
    bundle = changed_copy(trt_bundle, tmp_path / "changed", edit)
    before = sorted(bundle.path.rglob("*"))
    options = BuildOptions(target="tensorrt-rtx", compute_capabilities=("8.6",))
    with pytest.raises(BuildError, match=message) as caught:
        build_engines(bundle, options, lambda _: None)
    assert "\n" not in str(caught.value)
    assert sorted(bundle.path.rglob("*")) == before


def test_the_record_lists_what_was_asked(trt_bundle: Bundle) -> None:
    for folder in (trt_bundle.path / "engines").glob("*"):
        record = json.loads((folder / "engines.json").read_text())
        assert record["options"]["max_length"] == 128
        assert record["capacity"] == 128 + 64
