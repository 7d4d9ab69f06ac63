"""The graph of a static tree."""

import numpy as np
import onnx_ir as ir

from medusa_trt.runtime import tensors as names
from medusa_trt.tree_configs import MedusaTree


def make_tree_graph(tree: MedusaTree, opset: int) -> ir.Model:
    """Makes a graph without inputs that outputs a tree's additive mask and position offsets.

    The verify graph has inputs of the same names. Merged with this graph, it becomes a verify graph
    for this tree alone.
    """
    outputs = []
    nodes = []
    for name, array in (
        (names.TREE_MASK, tree.additive_mask),
        (names.POSITION_OFFSETS, np.array(tree.position_offsets)),
    ):
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))])
        output = node.outputs[0]
        output.name, output.shape = name, ir.Shape(array.shape)
        output.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        nodes.append(node)
        outputs.append(output)
    graph = ir.Graph([], outputs, nodes=nodes, opset_imports={"": opset}, name="tree")
    return ir.Model(graph, ir_version=10, producer_name="medusa-trt")
