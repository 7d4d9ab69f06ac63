"""What the passes share: comparing shapes and taking a node out."""

import onnx_ir as ir


def same_known_shape(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both shapes are annotated, in every dimension, and equal."""
    if left is None or right is None or left.shape is None or right.shape is None:
        return False
    return left.shape == right.shape and not left.shape.has_unknown_dim()


def bypass(node: ir.Node, source: ir.Value) -> None:
    """Gives `source` to all users of a node's only output, and removes the node."""
    assert node.graph is not None
    node.outputs[0].replace_all_uses_with(source)
    node.graph.remove(node, safe=True)
