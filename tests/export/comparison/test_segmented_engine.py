"""A graph that runs in parts."""

import numpy as np
import pytest

from medusa_trt.export.comparison.segmented_engine import SegmentedEngine
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.tensors import WEIGHTS_FILE
from medusa_trt.tree_configs import chain_tree


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "name", ["tiny_bundle", "trt_bundle", pytest.param("demo_bundle", marks=pytest.mark.slow)]
)
def test_a_graph_in_parts_computes_what_the_whole_does(
    name: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    whole = OrtEngine(bundle, capacity=128, batch_size=batch_size)
    size = bundle.manifest.files[WEIGHTS_FILE].size_bytes // 8
    parts = SegmentedEngine(bundle, capacity=128, batch_size=batch_size, segment_bytes=size)
    assert len(parts._segments) > 3
    is_divided = any("product" in output for part in parts._segments for output in part.outputs)
    assert is_divided == (name == "trt_bundle")
    lengths = [9, 5][:batch_size]
    for engine in (whole, parts):
        for slot, length in enumerate(lengths):
            text = np.arange(length)[None] + slot
            engine.verify(text, chain_tree(length - 1), [0], rows=(0,), first_slot=slot)
    tree = bundle.tree
    tokens = rng.integers(0, 256, (batch_size, tree.num_nodes))
    expected = whole.verify(tokens, tree, lengths, logits=True)
    found = parts.verify(tokens, tree, lengths, logits=True)
    assert expected.logits is not None and found.logits is not None
    limit = {"fp16": 1e-2}.get(bundle.manifest.target.precision, 1e-4)
    assert np.abs(found.logits - expected.logits).max() < limit
    assert np.abs(found.hidden - expected.hidden).max() < limit
    assert (found.argmax == expected.argmax).all()
    whole.close()
