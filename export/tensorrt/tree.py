"""The tree graph merged into the verify graph: what is built then serves one tree."""

import msgspec
import onnx_ir as ir

from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.manifest import GraphSpec

TREE_INPUTS = (names.TREE_MASK, names.POSITION_OFFSETS)
"""Inputs of the verify graph that the tree graph has as outputs."""


def merge_tree(verify: ir.Model, tree: ir.Model) -> None:
    """Makes the tree graph's outputs constants of the verify graph, in place of its inputs.

    The verify graph's number of nodes becomes the tree's.
    """
    outputs = {output.name: output for output in tree.graph.outputs}
    for value in [value for value in verify.graph.inputs if value.name in TREE_INPUTS]:
        constant = outputs[value.name].producer()
        assert constant is not None and constant.op_type == "Constant"
        verify.graph.inputs.remove(value)
        value.const_value = constant.attributes["value"].as_tensor()
        value.shape = ir.Shape(value.const_value.shape.numpy())
        verify.graph.initializers.add(value)


def merge_spec(spec: GraphSpec, num_nodes: int) -> GraphSpec:
    """Returns the interface of a verify graph with a tree of `num_nodes` merged into it."""
    inputs = [
        msgspec.structs.replace(
            tensor, shape=[num_nodes if size == "num_nodes" else size for size in tensor.shape]
        )
        for tensor in spec.inputs
        if tensor.name not in TREE_INPUTS
    ]
    return msgspec.structs.replace(spec, inputs=inputs)
