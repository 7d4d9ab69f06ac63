"""The base class of the forms: a form in plain torch computes what the model does."""

import numpy as np
import pytest
from support.bundle_steps import MAX_LOGIT_DIFFERENCE, expected_logits, path_to, random_tree
from support.model_families import FAMILIES, MAX_LENGTH, WINDOW, weighted_model
from support.reference.plain_attention import PlainAttention, run_plain_step
from support.tiny_models import VOCAB_SIZE

from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.tree_configs import chain_tree

NUM_PREFIX = 12


KINDS = ("llama", "mistral-window", "smollm3", "gemma2", "gemma3", "phi", "flint", "chunked_llama")
"""With sliding windows, capped scores, layers without rotation, two rotations, half of one, sinks,
and chunks."""


@pytest.mark.parametrize("family", KINDS)
def test_a_form_needs_its_mask_and_its_attention_alone(family: str) -> None:
    assert AttentionForm.__abstractmethods__ == {"_make_mask", "_attend"}
    model = weighted_model(FAMILIES[family])
    module = VerifyModule(model, MAX_LENGTH, PlainAttention)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 16, min_depth=WINDOW + 2)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    prefill = run_plain_step(module, text, chain_tree(NUM_PREFIX - 1))
    step = run_plain_step(module, tokens, tree, NUM_PREFIX, prefill.cache)
    for node in range(tree.num_nodes):
        expected = expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
        assert np.abs(step.logits[node] - expected).max() <= MAX_LOGIT_DIFFERENCE
