"""Functions that several passes use: to compare shapes, read constants, and replace values."""

import onnx_ir as ir

from medusa_trt.export.weights.lazy_tensor import LazyTensor, transpose_tensor, wrap_tensor


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
    """Returns the tensor of a constant, without its data where they were not read yet."""
    return None if value is None else value.const_value


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Adds a constant to a graph."""
    named = wrap_tensor(tensor).rename(name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(named.sizes),
        type=ir.TensorType(named.dtype),
        const_value=named,
    )
    graph.register_initializer(value)
    return value


def find_product_weight(node: ir.Node) -> LazyTensor | None:
    """Finds the (inputs, outputs) matrix of a product by a constant; None for another node."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain != "":
        return None
    constant = read_constant(node.inputs[1])
    if constant is None or len(constant.shape) != 2:
        return None
    weight, attributes = wrap_tensor(constant), node.attributes
    is_scaled = any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if is_scaled or attributes.get_int("transA", 0) != 0:
        return None
    return transpose_tensor(weight) if attributes.get_int("transB", 0) else weight


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives name, shape, type and users of an old value to a new one."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{old.name}.replaced"


def cast_input(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """Casts the first input of a node to another type, for this node alone."""
    source = node.inputs[0]
    cast = ir.Node("", "Cast", [source], [ir.AttrInt64("to", int(dtype))])
    value = cast.outputs[0]
    value.name, value.type = f"{node.outputs[-1].name}.input", ir.TensorType(dtype)
    value.shape = None if source is None else source.shape
    graph.insert_before(node, cast)
    node.replace_input_with(0, value)
