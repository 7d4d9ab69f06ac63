"""One product instead of three before attention."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

OP_TYPE = "GroupQueryAttention"


class PackQkvPass(InPlacePass):
    """Merges the query, key and value projections of `GroupQueryAttention`.

    Requires: attention's first three inputs. Ensures: where all three are MatMuls of one value
    by constants, attention reads their packed product; others are left alone.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Packs each attention node's projections."""
        modified = False
        for attention in list(model.graph):
            if attention.op_type != OP_TYPE:
                continue
            products = _products(attention)
            if products is None:
                continue
            packed = _packed_product(model.graph, products)
            attention.replace_input_with(0, packed)
            attention.replace_input_with(1, None)
            attention.replace_input_with(2, None)
            modified = True
        return PassResult(model, modified)


def _products(attention: ir.Node) -> list[ir.Node] | None:
    found = []
    for value in attention.inputs[:3]:
        product = value.producer() if value is not None else None
        if product is None or product.op_type != "MatMul":
            return None
        weight = product.inputs[1]
        if weight is None or weight.const_value is None:
            return None
        found.append(product)
    return found if len({id(product.inputs[0]) for product in found}) == 1 else None


def _packed_product(graph: ir.Graph, products: list[ir.Node]) -> ir.Value:
    weights = [product.inputs[1] for product in products]
    arrays = [w.const_value.numpy() for w in weights if w is not None and w.const_value is not None]
    array = np.concatenate(arrays, axis=1)
    tensor = ir.tensor(array, name=f"{products[0].name}.packed_weight")
    weight = ir.Value(
        name=tensor.name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(weight)
    packed = ir.Node("", "MatMul", [products[0].inputs[0], weight])
    packed.outputs[0].name = f"{products[0].name}.packed"
    graph.insert_before(products[0], packed)
    return packed.outputs[0]
