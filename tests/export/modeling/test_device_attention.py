"""The graphs of the TensorRT targets: equal to Hugging Face, and of operators that are there."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from support.tiny_models import VOCAB_SIZE, llama_config, random_model

from medusa_trt.export.comparison.check import widen_bundle
from medusa_trt.export.comparison.logits import compare_on_text, compare_on_tree, random_tree
from medusa_trt.export.modeling.device_attention import DecomposedAttention, DeviceAttention
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine

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
        compare_on_tree(engine, model, [ids[:31], ids[:7]], random_tree(20, 4, seed=5)),
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
