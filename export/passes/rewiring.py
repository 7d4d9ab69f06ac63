"""What the passes share: comparing shapes, taking a node out, and constants."""

import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import as_lazy_tensor


def have_same_shape(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both shapes are annotated, in every dimension, and equal."""
    if left is None or right is None or left.shape is None or right.shape is None:
        return False
    return left.shape == right.shape and not left.shape.has_unknown_dim()


def bypass(node: ir.Node, source: ir.Value) -> None:
    """Gives `source` to all users of a node's only output, and removes the node."""
    assert node.graph is not None
    node.outputs[0].replace_all_uses_with(source)
    node.graph.remove(node, safe=True)


def read_constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, which may not have been read yet."""
    return None if value is None else value.const_value


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Adds a constant to a graph."""
    named = as_lazy_tensor(tensor).named(name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(named.sizes),
        type=ir.TensorType(named.dtype),
        const_value=named,
    )
    graph.register_initializer(value)
    return value
