"""What an export knows before it writes, and what it only does when it writes."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from medusa_trt.export.comparison.check import check_bundle
from medusa_trt.export.models.random_weights import random_base_model, random_heads
from medusa_trt.export.passes import QuantizeWeightsPass
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.preparation import parts_from_options
from medusa_trt.export.quantization.quantize_weights import quantized_matrix
from medusa_trt.export.weight_formats import WeightFormat, one_format
from medusa_trt.export.weights.lazy_tensor import Array, LazyTensor
from medusa_trt.export.weights.weight_file import WeightFile
from medusa_trt.runtime.bundle import Bundle


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


@pytest.mark.parametrize(("format_", "block_size"), [("int4", 128), ("int8", None), ("fp8", None)])
def test_a_devices_weights_are_quantized_when_they_are_written(
    format_: WeightFormat, block_size: int | None, tmp_path: Path
) -> None:
    array = np.random.default_rng(0).normal(size=(256, 96)).astype(np.float16)
    reads = []

    def stored() -> Array:
        reads.append(1)
        return array

    tensor = LazyTensor(stored, array.shape, "key", ir.DataType.FLOAT16, "w")
    x = ir.Value(name="x", shape=ir.Shape([1, 256]), type=ir.TensorType(ir.DataType.FLOAT16))
    weight = ir.Value(name="w", const_value=tensor)
    product = ir.Node("", "MatMul", [x, weight], name="product")
    product.outputs[0].name = "y"
    graph = ir.Graph(
        [x], product.outputs, nodes=[product], initializers=[weight], opset_imports={"": 23}
    )
    model = ir.Model(graph, ir_version=10)
    QuantizeWeightsPass(one_format(format_))(model)
    assert not reads
    graph.initializers.pop("w")
    WeightFile(tmp_path / "weights.data").take(model)
    assert len(reads) == 1  # the scales are kept from the codes
    found = [model.graph.initializers[f"product.{name}"] for name in ("codes", "scales")]
    for value, expected in zip(found, quantized_matrix(array, format_, block_size), strict=True):
        assert value.const_value is not None and value.const_value.dtype == value.dtype
        assert np.array_equal(value.const_value.numpy(), expected)


def test_a_bundle_in_bfloat16_is_compared_in_float32(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(
        ExportOptions(
            model=str(tiny_model),
            heads=tiny_heads,
            tree="chain-3",
            output=tmp_path / "bundle",
            max_length=320,
            target="tensorrt",
            precision="bf16",
        ),
        lambda _: None,
    )
    assert bundle.manifest.verified.keys() == {"text", "tree", "batch"}
    assert not [path for path in bundle.path.iterdir() if path.is_dir()]
    assert len(list(check_bundle(bundle.path, str(tiny_model)))) == 3


def test_random_weights_of_any_size_cost_no_memory() -> None:
    base = random_base_model("vicuna-33b", None, torch.float16)
    assert all(parameter.is_meta for parameter in base.model.parameters())
    weight = base.weights["model.layers.59.self_attn.q_proj.weight"]
    assert weight.sizes == (6656, 6656) and weight.stored().dtype == np.float16
    assert len({tensor.key for tensor in base.weights.values()}) == len(base.weights)
    first, second = random_heads(base.model.config, torch.float16).unread["unembedding"][:2]
    assert first.sizes == (32000, 6656) and first.key != second.key
