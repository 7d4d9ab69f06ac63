"""The verify graph as a module around a model."""

import numpy as np
import pytest
import torch
from support.bundle_steps import MAX_LOGIT_DIFFERENCE, random_tree
from support.model_families import FAMILIES, MAX_LENGTH, weighted_model
from support.reference.plain_attention import PlainAttention, run_plain_step
from support.tiny_models import VOCAB_SIZE, random_model

from medusa_trt.export.graphs.verify_module import VerifyModule, cache_shape_from_model
from medusa_trt.export.modeling.attention_forms import ATTENTION_FORMS


@pytest.mark.parametrize(
    ("family", "num_kv_heads", "head_dim"),
    [("llama", 2, 16), ("qwen3", 2, 32), ("gpt_neox", 1, 64)],
)
def test_the_cache_has_the_sizes_of_the_models_keys(
    family: str, num_kv_heads: int, head_dim: int
) -> None:
    shape = cache_shape_from_model(random_model(FAMILIES[family]), MAX_LENGTH)
    assert (shape.num_layers, shape.num_kv_heads, shape.head_dim) == (2, num_kv_heads, head_dim)


# Of the second family, the model scales the logits.
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_the_rows_that_are_wanted_are_computed(family: str) -> None:
    model = weighted_model(FAMILIES[family])
    module = VerifyModule(model, MAX_LENGTH, PlainAttention)
    rng = np.random.default_rng(0)
    tree = random_tree(rng, 12, min_depth=4)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    whole = run_plain_step(module, tokens, tree)
    assert np.array_equal(whole.argmax, whole.logits.argmax(-1))
    with torch.no_grad():
        hidden = torch.from_numpy(whole.hidden)
        logits = model.get_output_embeddings()(hidden).numpy() / getattr(
            model.config, "logits_scaling", 1
        )
    assert np.abs(whole.logits - logits).max() <= MAX_LOGIT_DIFFERENCE
    rows = [11, 3, 3, 0]
    some = run_plain_step(module, tokens, tree, rows=rows)
    for found, expected in ((some.logits, whole.logits), (some.hidden, whole.hidden)):
        assert np.abs(found - expected[rows]).max() <= MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("name", ATTENTION_FORMS)
def test_example_inputs_have_the_axes_that_a_form_asks_for(name: str) -> None:
    form = ATTENTION_FORMS[name]
    module = VerifyModule(random_model(FAMILIES["llama"]), MAX_LENGTH, form)
    ids, mask, offsets, past_length, _, *rest = module.make_example_inputs()
    trees = ids.shape[:1] if form.takes_tree_per_sequence else ()
    assert len(past_length) == len(ids) == (2 if form.takes_batch else 1)
    assert mask.shape == (*trees, ids.shape[1], ids.shape[1])
    assert offsets.shape == (*trees, ids.shape[1])
    assert len(rest) == 4 + form.reads_cache_positions
    wanted = torch.bfloat16 if form.cache_dtype == "bfloat16" else torch.float32
    assert all(cache.dtype == wanted for cache in rest[-4:])
