"""What an export knows before the long work."""

from pathlib import Path

import onnx_ir as ir
import pytest

from medusa_trt.errors import ExportError
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.preparation import parts_from_options
from medusa_trt.runtime.bundle import Bundle


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
