"""Attention by one operator, in quantized bundles of each supported family."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.bundle_steps import (
    MAX_LOGIT_DIFFERENCE,
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
    WINDOW,
    weighted_model,
)
from support.tiny_models import VOCAB_SIZE

from medusa_trt.export.comparison.logits import MAX_RELATIVE_ERROR, compute_agreement
from medusa_trt.export.modeling.operator_attention import CachedAttention, TreeAttention
from medusa_trt.export.modeling.support import needs_general_attention
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import chain_tree

NUM_PREFIX = 50


def constant_products(bundle: Bundle) -> list[str]:
    """Matrix products of a bundle's graphs that ONNX Runtime would compute."""
    return [
        f"{graph}: {node.name}"
        for graph in ("verify", "heads")
        for node in ir.load(bundle.graph_path(graph)).graph
        if node.op_type in ("MatMul", "Gemm") and node.domain == ""
    ]


QUANTIZED = {"llama", "llama-tied-biased", "qwen2", "smollm3", "gemma2", "gemma3", "gpt_neox"}
"""Families that are quantized in every run of the tests."""


@pytest.mark.skipif(find_library() is None, reason="built without a C++ compiler")
@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(family, "int8", marks=[] if family in QUANTIZED else [pytest.mark.slow])
        for family in FAMILIES
    ]
    + [("llama", "int4")],
)
def test_a_quantized_bundle_is_close_to_the_model_and_exact_among_its_own_steps(
    family: str, precision: str, tmp_path: Path
) -> None:
    model = weighted_model(FAMILIES[family])
    bundle = exported(model, tmp_path, precision=precision)
    assert not constant_products(bundle)
    form = CachedAttention if needs_general_attention(model, MAX_LENGTH) else TreeAttention
    operators = [f"{n.domain}::{n.op_type}" for n in ir.load(bundle.graph_path("verify")).graph]
    assert operators.count(form.op_type) == bundle.manifest.model.num_layers
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 24, min_depth=WINDOW + 2)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    whole = prefill(engine, text, NUM_PREFIX)
    min_rows = bundle.manifest.target.min_rows
    assert min_rows == form.min_rows
    for chunk in (min_rows, 10, 16):  # none leaves a rest of fewer rows
        assert np.array_equal(prefill(engine, text, chunk), whole)
    step = verify(engine, tokens, tree, NUM_PREFIX)
    expected = np.stack(
        [
            expected_logits(model, np.append(text, tokens[path_to(tree, node)]))
            for node in range(tree.num_nodes)
        ]
    )
    assert compute_agreement(step.logits, expected).relative_error <= MAX_RELATIVE_ERROR[precision]
    for past, node in enumerate(path_to(tree, WINDOW + 2), NUM_PREFIX):
        row = np.append(tokens[node], np.zeros(min_rows - 1, np.int64))
        alone = verify(engine, row, chain_tree(min_rows - 1), past).logits[0]
        if min_rows == 1:
            assert np.array_equal(alone, step.logits[node])
        else:  # ONNX Runtime's own attention sums in an order that depends on the longest row
            assert np.abs(alone - step.logits[node]).max() <= MAX_LOGIT_DIFFERENCE
    engine.close()
