"""The pass that packs three products into one whose result is split again."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import add_initializer, find_product_weight
from medusa_trt.export.weights.lazy_tensor import concatenate_tensors

_NUM_PACKED = 3


class PackSplitQkvPass(CheckedPass):
    """Merges three MatMuls of one value by constants into a MatMul and a Split.

    The packed weight is the one that `PackQkvPass` makes, so that both forms of a verify graph
    share it. The projections of queries, keys and values come in this order.
    """

    def call(self, model: ir.Model) -> PassResult:
        groups = _find_groups_of_three(model.graph)
        for products in groups:
            _pack(model.graph, products)
        return PassResult(model, bool(groups))

    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds the first product of each group of three."""
        return (group[0] for group in _find_groups_of_three(graph))


def _find_groups_of_three(graph: ir.Graph) -> list[list[ir.Node]]:
    """Products of one value by constants that are used, three for each value."""
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[0] is None or find_product_weight(node) is None:
            continue
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            groups[node.inputs[0]].append(node)
    return [group for group in groups.values() if len(group) == _NUM_PACKED]


def _pack(graph: ir.Graph, products: list[ir.Node]) -> None:
    weights = [
        weight for product in products if (weight := find_product_weight(product)) is not None
    ]
    name = f"{products[0].name}.packed"
    packed = add_initializer(graph, f"{name}_weight", concatenate_tensors(weights, axis=1))
    widths = np.array([weight.sizes[1] for weight in weights])
    sizes = add_initializer(graph, f"{name}_sizes", ir.tensor(widths))
    product = ir.Node("", "MatMul", [products[0].inputs[0], packed])
    split = ir.Node(
        "",
        "Split",
        [product.outputs[0], sizes],
        [ir.AttrInt64("axis", -1)],
        num_outputs=len(weights),
    )
    product.outputs[0].name, product.outputs[0].type = name, products[0].outputs[0].type
    for index, (old, new) in enumerate(zip(products, split.outputs, strict=True)):
        new.name, new.shape, new.type = f"{name}.{index}", old.outputs[0].shape, old.outputs[0].type
        old.outputs[0].replace_all_uses_with(new)
    graph.insert_before(products[0], [product, split])
