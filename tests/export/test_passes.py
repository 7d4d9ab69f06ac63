"""All passes together, on the graph of a model."""

from collections import Counter

import pytest
from support.tiny_models import llama_config, random_model
from transformers import PretrainedConfig, Qwen2Config

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.operator_attention import CachedAttention
from medusa_trt.export.passes import optimize

SKIP_NORM = "SkipSimplifiedLayerNormalization"

BIASED = Qwen2Config(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("config", [llama_config(), BIASED], ids=["llama", "qwen2"])
def test_the_optimized_graph_of_a_model(config: PretrainedConfig) -> None:
    module = VerifyModule(random_model(config), 64, CachedAttention)
    model = trace_verify(module, 23)
    counts = Counter(node.op_type for node in model.graph)
    num_layers = config.num_hidden_layers
    assert counts["GroupQueryAttention"] == num_layers
    assert counts["MatMul"] == 5 * num_layers
    assert counts[SKIP_NORM] == 2 * num_layers and counts["RMSNormalization"] == 1
    assert counts.keys().isdisjoint(
        {"Transpose", "Slice", "Neg", "Sin", "Cos", "Identity", "Split"}
    )
    for node in model.graph:
        shape = node.outputs[0].shape
        assert node.op_type != "Reshape" or (shape is not None and len(shape) < 3)
    optimize(model)
    assert Counter(node.op_type for node in model.graph) == counts
