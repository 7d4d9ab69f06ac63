"""A tree that becomes part of the verify graph."""

import numpy as np
import onnx_ir as ir

from medusa_trt.export.tensorrt.tree import TREE_INPUTS, merge_spec, merge_tree
from medusa_trt.runtime.bundle import Bundle


def test_the_trees_tensors_become_constants(trt_bundle: Bundle) -> None:
    verify = ir.load(trt_bundle.graph_path("verify"))
    merge_tree(verify, ir.load(trt_bundle.graph_path("tree")))
    tree, spec = trt_bundle.tree, trt_bundle.manifest.graphs["verify"]
    assert not {value.name for value in verify.graph.inputs} & set(TREE_INPUTS)
    mask, offsets = (verify.graph.initializers[name].const_value for name in TREE_INPUTS)
    assert mask is not None and offsets is not None
    assert np.array_equal(mask.numpy(), tree.additive_mask)
    assert np.array_equal(offsets.numpy(), tree.position_offsets)
    merged = merge_spec(spec, tree.num_nodes)
    assert [tensor.name for tensor in merged.inputs] == [
        value.name for value in verify.graph.inputs
    ]
    assert not any("num_nodes" in tensor.shape for tensor in merged.inputs)
