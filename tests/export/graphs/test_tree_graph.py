"""The tree's graph in front of the verify graph."""

import numpy as np
import onnx_ir as ir
import onnxruntime
from support.bundle_steps import MAX_LOGIT_DIFFERENCE, verify
from support.tiny_models import (
    VOCAB_SIZE,
)

from medusa_trt.export.graphs.tree_graph import make_tree_graph
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine


def test_the_tree_graph_feeds_the_verify_graph(tiny_bundle: Bundle) -> None:
    tree = tiny_bundle.tree
    graph = ir.to_proto(make_tree_graph(tree, opset=23))
    tree_session = onnxruntime.InferenceSession(graph.SerializeToString())
    outputs = [value.name for value in tree_session.get_outputs()]
    assert outputs == [names.TREE_MASK, names.POSITION_OFFSETS]
    feeds = dict(zip(outputs, tree_session.run(outputs, {}), strict=True))
    assert ((feeds[names.TREE_MASK] == 0) == tree.attn_mask).all()
    assert (feeds[names.TREE_MASK][~tree.attn_mask] < -1e30).all()
    assert (feeds[names.POSITION_OFFSETS] == tree.position_offsets).all()

    engine = OrtEngine(tiny_bundle)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, tree.num_nodes)
    expected = verify(engine, tokens, tree, 0).logits
    session = onnxruntime.InferenceSession(tiny_bundle.graph_path("verify"))
    model = tiny_bundle.manifest.model
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            shape = (1, model.num_kv_heads, 100, model.head_dim)
            feeds[value.name] = np.zeros(shape, np.float32)
    feeds |= {
        names.INPUT_IDS: tokens[None],
        names.PAST_LENGTH: np.array([0]),
        names.ROWS: np.arange(tree.num_nodes),
    }
    (logits,) = session.run([names.LOGITS], feeds)
    assert np.abs(logits - expected).max() <= MAX_LOGIT_DIFFERENCE
