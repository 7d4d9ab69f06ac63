"""The forms of attention, in exported bundles of each supported family."""

from pathlib import Path

import numpy as np
import pytest
from support.bundle_steps import (
    MAX_CACHE_DIFFERENCE,
    MAX_LOGIT_DIFFERENCE,
    WIDE_TREE,
    cached,
    check_greedy_reply,
    expected_logits,
    exported,
    path_to,
    prefill,
    random_tree,
    verify,
)
from support.model_families import (
    FAMILIES,
    MAX_LENGTH,
    VARIANTS,
    WINDOW,
    weighted_model,
)
from support.tiny_models import VOCAB_SIZE

from medusa_trt.export.modeling.attention_forms import choose_attention
from medusa_trt.export.modeling.operator_attention import CachedAttention, TreeAttention
from medusa_trt.export.modeling.standard_attention import ScatterAttention
from medusa_trt.export.targets import TARGETS
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import chain_tree

NUM_PREFIX = 50


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.slow] if family in VARIANTS else [])
        for family in FAMILIES
    ],
)
def test_a_bundle_computes_what_the_model_does(family: str, tmp_path: Path) -> None:
    model = weighted_model(FAMILIES[family])
    bundle = exported(model, tmp_path, tree=WIDE_TREE)
    check_greedy_reply(bundle, model)
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 24, min_depth=WINDOW + 2)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)

    whole = prefill(engine, text, NUM_PREFIX)
    for chunk in (1, 7, 16):
        difference = np.abs(prefill(engine, text, chunk) - whole).max()
        assert difference <= MAX_LOGIT_DIFFERENCE
    step = verify(engine, tokens, tree, NUM_PREFIX)
    for node in range(tree.num_nodes):
        expected = expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
        assert np.abs(step.logits[node] - expected).max() <= MAX_LOGIT_DIFFERENCE
    assert (step.argmax == step.logits.argmax(-1)).all()

    rows = [tree.num_nodes - 1, 3, 3, 0]
    some = verify(engine, tokens, tree, NUM_PREFIX, rows)
    assert (some.argmax == step.argmax[rows]).all()
    assert np.abs(some.hidden - step.hidden[rows]).max() <= MAX_CACHE_DIFFERENCE
    assert np.abs(some.logits - step.logits[rows]).max() <= MAX_LOGIT_DIFFERENCE

    accepted = path_to(tree, WINDOW + 1)
    engine.cache.commit(0, NUM_PREFIX, accepted)
    longer = np.append(text, tokens[accepted])
    committed = cached(engine, len(longer))
    next_token = rng.integers(0, VOCAB_SIZE, 1)
    after = verify(engine, next_token, chain_tree(0), len(longer)).logits[0]
    expected = expected_logits(model, np.append(longer, next_token))
    assert np.abs(after - expected).max() <= MAX_LOGIT_DIFFERENCE
    prefill(engine, longer, len(longer))
    assert np.abs(committed - cached(engine, len(longer))).max() <= MAX_CACHE_DIFFERENCE
    engine.close()


def test_the_librarys_attention_is_for_bundles_that_need_the_library_anyway() -> None:
    for precision in TARGETS["ort-cpu"].precisions:
        forms = choose_attention(TARGETS["ort-cpu"].attention, has_library=precision.uses_library)
        if precision.uses_library:
            assert forms == {"verify": TreeAttention}
        else:
            assert forms == {"verify": CachedAttention, "verify_batch": ScatterAttention}
