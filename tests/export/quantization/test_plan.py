"""Plans applied at export: the formats of the graph's matrices, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.graphs.planned_graphs import (
    is_constant,
    plan_of,
    planned_graph,
    stored_matrices,
)
from support.tiny_models import llama_config, random_model
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from medusa_trt.calibration.quantization.meter import RoundedModel
from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.logits import compute_agreement
from medusa_trt.export.comparison.passages import PASSAGES
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.quantization.library import (
    dequantize_weight,
    quantize_weight,
)
from medusa_trt.export.quantization.plan import (
    PlannedFormats,
    PlannedSite,
    QuantizationPlan,
    plan_from_file,
    precision_from_plan,
)
from medusa_trt.export.quantization.rounding import LibraryRounding
from medusa_trt.export.quantization.sites import Site, sites_from_model
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.weights.lazy_tensor import LazyTensor
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import chain_tree

needs_library = pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")

Floats = NDArray[np.float32]

SIZES = {
    key: value
    for key, value in llama_config().to_dict().items()
    if key.endswith(("_size", "_layers", "_heads", "_embeddings", "_range", "_token_id"))
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama-tied": llama_config(tie_word_embeddings=True),
    "llama-biased": llama_config(attention_bias=True, mlp_bias=True),
    "phi3": AutoConfig.for_model("phi3", **SIZES | {"pad_token_id": 0}),
    "gpt_neox": AutoConfig.for_model("gpt_neox", **SIZES | {"num_attention_heads": 1}),
}


def expected_columns(model: PreTrainedModel, site: Site, format_: str) -> set[bytes]:
    """Each output's weights, as that format stores them."""
    columns = set()
    for name, (num_inputs, _) in zip(site.weights, site.shapes, strict=True):
        matrix = model.get_parameter(name).detach().numpy().T
        if format_ != "fp32":
            bits = int(format_.removeprefix("int"))
            matrix = dequantize_weight(quantize_weight(matrix, bits), *matrix.shape)
        columns |= {column[:num_inputs].tobytes() for column in matrix.T}
    return columns


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_each_matrix_is_stored_in_its_planned_format(family: str) -> None:
    model = random_model(FAMILIES[family])
    sites = sites_from_model(model)
    plan = plan_of(sites, ("int8", "int4", "int4", "fp32", "int8"))
    matrices = stored_matrices(planned_graph(model, plan).graph)
    assert len({site.name for site in sites}) == len(sites)
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert Counter(path for site in sites for path in site.modules) == Counter(linears)
    for site, planned in zip(sites, plan.sites, strict=True):
        columns = expected_columns(model, site, planned.format)
        num_inputs = site.shapes[0][0]
        same = [
            format_
            for format_, matrix in matrices
            if {c.tobytes() for c in np.ascontiguousarray(matrix[:num_inputs].T)} & columns
        ]
        # Products that cannot be packed stay apart.
        assert set(same) == {planned.format} and len(same) <= len(site.modules)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-jetson"])
def test_a_device_reads_each_matrix_in_its_planned_format(target: str) -> None:
    model = random_model(llama_config())
    sites = sites_from_model(model)
    model.half()
    graph = planned_graph(model, plan_of(sites, ("int4", "fp16", "int8"), target), target).graph
    read: list[str] = []
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm") or node.inputs[1] is None:
            continue
        source = node.inputs[1].producer()
        if source is not None and source.op_type == "DequantizeLinear":
            codes = source.inputs[0]
            assert codes is not None and codes.dtype is not None
            read.append(codes.dtype.name)
        elif is_constant(node.inputs[1]):
            read.append("FLOAT16")
    assert [site.kind for site in sites[:5]] == ["qkv", "o", "gate_up", "down", "qkv"]
    # gate_up are two products here.
    qkv, o, gate_up, down = "INT4", "FLOAT16", "INT8", "INT4"
    assert read[:5] == [qkv, o, gate_up, gate_up, down]
    assert read[5:] == ["FLOAT16", "INT8", "INT4", "INT4", "FLOAT16", "INT8"]


@needs_library
def test_a_bundle_computes_what_the_rounded_model_does(
    tiny_model: Path, tiny_heads: Path, tmp_path: Path
) -> None:
    model = random_model(llama_config())
    sites = sites_from_model(model)
    plan = plan_of(sites, ("int8", "int4", "fp32"))
    path = tmp_path / "plan.json"
    path.write_bytes(plan.to_json())
    assert plan_from_file(path) == plan
    options = ExportOptions(
        model=str(tiny_model),
        heads=tiny_heads,
        tree="chain-2",
        output=tmp_path / "bundle",
        quantization_plan=path,
    )
    bundle = export_bundle(options, lambda _: None)
    assert bundle.manifest.target.precision == "mixed" and bundle.manifest.target.min_rows == 2
    assert plan_from_file(bundle.path / "quantization.json") == plan
    assert bundle.manifest.verified["text"].kl_divergence > 0

    ids = np.frombuffer(PASSAGES[0].encode()[:200], np.uint8).astype(np.int64)
    engine = OrtEngine(bundle, capacity=256)
    outputs = engine.verify(ids[None], chain_tree(len(ids) - 1), [0], logits=True)
    assert outputs.logits is not None
    with torch.no_grad():
        exact = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        rounded = RoundedModel(model, sites, LibraryRounding())
        rounded.set({site.name: site.format for site in plan.sites})  # type: ignore[misc]
        table = model.get_parameter("model.embed_tokens.weight").numpy()
        table[...] = LibraryRounding().round_weight(table.T, "int8").T
        simulated = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    # What is left is the cache's bfloat16.
    error = compute_agreement(outputs.logits[0], exact).relative_error
    assert compute_agreement(outputs.logits[0], simulated).relative_error < error / 8
    engine.close()


def test_a_mistaken_plan_is_named() -> None:
    model = random_model(llama_config(num_hidden_layers=1))
    sites = sites_from_model(model)
    plan = plan_of(sites, ("int8",), "tensorrt")
    products = [
        LazyTensor(
            lambda: np.empty(0),
            (site.shapes[0][0], sum(outputs for _, outputs in site.shapes)),
            site.name,
            sources=[f"model.{name}" for name in site.weights],
        )
        for site in sites
    ]

    def refusal(*planned: PlannedSite) -> str:
        with pytest.raises(ExportError, match="calibrate quantization") as refused:
            mistaken = QuantizationPlan(model="", target="", sites=planned)
            precision_from_plan(TARGETS["tensorrt"], mistaken)
            formats = PlannedFormats(mistaken, model, "model.")
            for product in products:
                formats(product)
            formats.check()
        return str(refused.value)

    unknown = PlannedSite("layers.9.o", "int8", ("model.layers.9.self_attn.o_proj.weight",))
    assert "names layers.9.o" in refusal(*plan.sites, unknown)
    embedding = PlannedSite("embedding", "int8", ("model.embed_tokens.weight",))
    assert "names embedding, which the graph lacks" in refusal(*plan.sites, embedding)
    assert "no format for lm_head.weight" in refusal(*plan.sites[:-1])
    apart = [
        PlannedSite(f"one.{weight}", format_, (weight,))
        for weight, format_ in zip(sites[0].weights, ("int8", "int8", "fp16"), strict=True)
    ]
    assert "2 formats for model.layers.0.self_attn.k_proj" in refusal(*apart, *plan.sites[1:])
    whole = PlannedSite("layers.0.o", "fp32", ())
    assert "has weights in fp32, target tensorrt takes int4, int8, fp8, fp16" in refusal(whole)


def test_files_that_are_no_plan_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(ExportError, match=r"cannot read .*plan.json: No such file"):
        plan_from_file(path)
    path.write_text('{"format_version": 1, "model": "x"}')
    with pytest.raises(ExportError, match="is damaged"):
        plan_from_file(path)
    path.write_text('{"format_version": 9, "model": "x", "target": "y", "sites": []}')
    with pytest.raises(ExportError, match="format version 9, this release reads 1"):
        plan_from_file(path)
    with pytest.raises(ExportError, match="format version 9"):
        export_bundle(ExportOptions(model=str(tiny_model), quantization_plan=path))
