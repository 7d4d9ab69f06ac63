"""The graphs of the TensorRT targets: equal to Hugging Face, and of operators that are there."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.bundle_steps import expected_logits, exported, path_to, prefill, random_tree, verify
from support.model_families import FAMILIES, MAX_LENGTH, WINDOW, weighted_model
from support.tiny_models import VOCAB_SIZE, llama_config, random_model

from medusa_trt.export.comparison.check import widen_bundle
from medusa_trt.export.comparison.logits import (
    MAX_RELATIVE_ERROR,
    compare_on_text,
    compare_on_tree,
    compute_agreement,
)
from medusa_trt.export.comparison.logits import random_tree as random_broad_tree
from medusa_trt.export.modeling.device_attention import DecomposedAttention, DeviceAttention
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine

NUM_PREFIX = 50
MAX_TWIN_ERROR = 2e-3
"""Relative, of a graph without its rounding: what is left is that of the rotary tables."""


def test_the_graph_equals_the_model(trt_bundle: Bundle, tmp_path: Path) -> None:
    """The float16 graph without its rounding, against the model with the weights' rounding."""
    model = random_model(llama_config())
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    engine = OrtEngine(
        widen_bundle(trt_bundle, tmp_path / "wide"), capacity=128, batch_size=2, num_threads=1
    )
    ids = np.random.default_rng(3).integers(0, VOCAB_SIZE, 60).tolist()
    found = [
        compare_on_text(engine, model, ids, chunk=17),
        compare_on_tree(engine, model, [ids[:31], ids[:7]], random_broad_tree(20, 4, seed=5)),
    ]
    engine.close()
    assert all(each.relative_error <= MAX_TWIN_ERROR for each in found), found
    assert trt_bundle.manifest.verified.keys() == {"text", "tree", "batch"}
    assert trt_bundle.manifest.target.cache_in_place == DeviceAttention.updates_in_place


def test_the_jetson_graphs_keep_to_operators_of_tensorrt_10_3(jetson_bundle: Bundle) -> None:
    for graph in ("verify", "heads", "reduce"):
        model = ir.load(jetson_bundle.graph_path(graph))
        assert {node.domain for node in model.graph} == {""}
        operators = {node.op_type for node in model.graph}
        assert not operators & {"Attention", "TensorScatter", "RotaryEmbedding"}
        assert "RMSNormalization" not in operators
        assert not operators & {"CumSum", "BitShift"}, "slow or missing there"
        assert model.graph.opset_imports[""] <= 21
    in_place = jetson_bundle.manifest.target.cache_in_place
    assert not in_place and in_place == DecomposedAttention.updates_in_place


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-jetson"])
@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3", "mistral-window", "smollm3", "flint", "chunked_llama"]
)
def test_a_bundle_for_a_device_computes_what_the_model_does(
    family: str, target: str, tmp_path: Path
) -> None:
    model = weighted_model(FAMILIES[family])
    bundle = exported(model, tmp_path, target=target, precision="fp16")
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 24, min_depth=WINDOW + 2)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    prefill(engine, text, NUM_PREFIX)
    found = verify(engine, tokens, tree, NUM_PREFIX).logits
    expected = np.stack(
        [
            expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
            for node in range(tree.num_nodes)
        ]
    )
    assert compute_agreement(found, expected).relative_error <= MAX_RELATIVE_ERROR["fp16"]
    engine.close()
