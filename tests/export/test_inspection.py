"""What a step reads of a bundle's graphs."""

import pytest
from support.tiny_models import llama_config

from medusa_trt.export.inspection import load_gpus, read_graph_facts
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.tree_configs.tree import MAX_NODES


def test_inspect_counts_what_a_step_reads(tiny_bundle: Bundle) -> None:
    config = llama_config()
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    per_layer = hidden * (hidden + 2 * hidden // 2 + hidden) + 3 * hidden * inner
    matrices = 4 * (config.num_hidden_layers * per_layer + vocab * hidden)
    norms = 4 * hidden * (2 * config.num_hidden_layers + 1)
    facts = read_graph_facts(tiny_bundle, "verify")
    # The norms are all ones, so some are stored once; and there are a few shapes.
    assert matrices + 4 * hidden <= facts.read_bytes <= matrices + norms + 200
    tables = 4 * vocab * hidden + 2 * 4 * (512 + MAX_NODES) * 8  # the embedding, cosines and sines
    assert facts.weight_bytes == facts.read_bytes + tables
    assert facts.operators["com.microsoft.GroupQueryAttention"] == 2
    assert tiny_bundle.count_cache_bytes(10) == 2 * 2 * 2 * 16 * 10 * 4
    assert load_gpus()["h100"].compute_max_steps_per_s(3_350_000_000) == pytest.approx(1000)
