"""Attention by one operator, in quantized bundles of each supported family."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.bundle_steps import (
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
from medusa_trt.export.modeling.operator_attention import TreeAttention
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import MedusaTree, chain_tree

NUM_PREFIX = 50


def constant_products(bundle: Bundle) -> list[str]:
    """Matrix products of a bundle's graphs that ONNX Runtime would compute."""
    return [
        f"{graph}: {node.name}"
        for graph in ("verify", "heads")
        for node in ir.load(bundle.graph_path(graph)).graph
        if node.op_type in ("MatMul", "Gemm") and node.domain == ""
    ]


QUANTIZED = {
    "llama",
    "llama-tied-biased",
    "qwen2",
    "smollm3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "flint",
    "chunked_llama",
}
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
    operators = [f"{n.domain}::{n.op_type}" for n in ir.load(bundle.graph_path("verify")).graph]
    assert operators.count(TreeAttention.op_type) == bundle.manifest.model.num_layers
    engine = OrtEngine(bundle, capacity=2 * MAX_LENGTH)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB_SIZE, NUM_PREFIX)
    tree = random_tree(rng, 24, min_depth=WINDOW + 2)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    whole = prefill(engine, text, NUM_PREFIX)
    assert bundle.manifest.target.min_rows == 1
    for chunk in (1, 7, 16):
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
        alone = verify(engine, tokens[[node]], chain_tree(0), past).logits[0]
        assert np.array_equal(alone, step.logits[node])
    check_batch(bundle, engine, text, tokens, tree)
    engine.close()


def check_batch(
    bundle: Bundle,
    engine: OrtEngine,
    text: NDArray[np.int64],
    tokens: NDArray[np.int64],
    tree: MedusaTree,
) -> None:
    """Two sequences of different lengths have the bits of each alone."""
    pasts = [NUM_PREFIX, NUM_PREFIX - 2 * WINDOW - 1]
    pair = OrtEngine(bundle, capacity=2 * MAX_LENGTH, batch_size=2)
    pair.verify(np.stack([text, text]), chain_tree(NUM_PREFIX - 1), [0, 0])
    both = pair.verify(np.stack([tokens, tokens]), tree, pasts, logits=True).logits
    assert both is not None
    for found, past in zip(both, pasts, strict=True):
        prefill(engine, text, NUM_PREFIX)
        assert np.array_equal(found, verify(engine, tokens, tree, past).logits)
    pair.close()
