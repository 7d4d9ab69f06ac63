"""What an export knows before the long work."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from support.model_families import longrope
from support.tiny_models import TINY_HEADS, head_tensors, save_tiny_heads, save_tiny_model
from transformers import AutoConfig

from medusa_trt.errors import ExportError
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.preparation import parts_from_options
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.tree_configs import HEADS_TREE_FILE, MedusaTree


@pytest.mark.parametrize("max_length", [63, 513])
def test_a_maximum_length_out_of_range_is_refused(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path, max_length: int
) -> None:
    options = ExportOptions(
        model=str(tiny_model),
        heads=tiny_heads,
        tree="chain-2",
        output=tmp_path / "bundle",
        max_length=max_length,
    )
    with pytest.raises(ExportError, match=f"--max-length is {max_length}: .* 64 to 512$"):
        export_bundle(options, progress=lambda _: None)


@pytest.mark.parametrize(
    ("name", "target", "precision"),
    [
        ("tiny_bundle", "ort-cpu", "fp32"),
        ("trt_bundle", "tensorrt", "fp16"),
        ("jetson_bundle", "tensorrt-jetson", "int4"),
    ],
)
def test_the_size_of_a_bundle_is_known_before(
    name: str,
    target: str,
    precision: str,
    tiny_model: Path,
    tiny_heads: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    options = ExportOptions(
        model=str(tiny_model),
        heads=tiny_heads,
        tree="chain-3",
        output=tmp_path / "bundle",
        target=target,
        precision=precision,
    )
    estimate = parts_from_options(options, lambda _: None).size_bytes
    sizes = {}
    for graph in bundle.manifest.graphs:
        for value in ir.load(bundle.graph_path(graph)).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and value.name not in ("cos", "sin"):
                sizes[tensor.offset] = tensor.nbytes
    assert 0.9 * sum(sizes.values()) <= estimate <= 1.2 * sum(sizes.values())


@pytest.mark.parametrize(
    ("max_length", "expected", "message"),
    [
        (None, 128, "by its short factors: --max-length above 128 would rotate every text by the"),
        (129, 129, "by its long factors, as --max-length is 129: Hugging Face rotates texts of up"),
    ],
)
def test_the_default_length_keeps_to_longropes_short_factors(
    max_length: int | None, expected: int, message: str, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "phi3", longrope(128))
    options = ExportOptions(
        model=str(folder), heads="none", output=tmp_path / "bundle", max_length=max_length
    )
    told: list[str] = []
    assert parts_from_options(options, told.append).max_length == expected
    assert any(message in line for line in told)


@pytest.mark.parametrize("model_type", ["bloom", "mamba"])
def test_models_without_a_longest_sequence_are_refused_for_what_they_are(
    model_type: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=300, hidden_size=64, eos_token_id=257)
    config.num_hidden_layers = 2
    folder = save_tiny_model(tmp_path / model_type, config)
    options = ExportOptions(model=str(folder), heads="none", output=tmp_path / "bundle")
    with pytest.raises(ExportError, match="attention outside the attention interface"):
        parts_from_options(options, lambda _: None)


def test_the_tree_beside_the_heads_is_the_bundles(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_tiny_heads(tmp_path / TINY_HEADS).parent
    tree = MedusaTree.from_choices([(0,), (1,), (1, 0)])
    tree.save(folder / HEADS_TREE_FILE)
    told: list[str] = []
    options = ExportOptions(
        model=str(tiny_model), heads=folder, precision="fp32", output=tmp_path / "bundle"
    )
    assert parts_from_options(options, told.append).tree == tree
    assert "  tree medusa_tree that lies beside the heads: 4 nodes, 2 deep" in told
    wanted = parts_from_options(replace(options, tree="chain-2"), told.append).tree
    assert wanted.name == "chain-2" and "  tree chain-2: 3 nodes, 2 deep" in told


@pytest.mark.parametrize(("precision", "is_told"), [("int4", True), ("int8", False)])
def test_int4_of_a_small_model_is_foreseen(
    precision: str, is_told: bool, tiny_model: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    parts_from_options(
        ExportOptions(model=str(tiny_model), precision=precision, output=tmp_path / "bundle"),
        told.append,
    )
    assert is_told == any("may lose much in int4" in x and "calibrate quan" in x for x in told)


def test_the_default_tree_fits_few_heads(tiny_model: Path, tmp_path: Path) -> None:
    heads = save_tiny_heads(tmp_path / TINY_HEADS, head_tensors(num_heads=1))
    lines: list[str] = []
    options = ExportOptions(model=str(tiny_model), heads=heads, output=tmp_path / "bundle")
    tree = parts_from_options(options, lines.append).tree
    assert tree.max_depth == 1 and tree.num_nodes > 1
    assert any("without its deepest nodes: " in line for line in lines)
