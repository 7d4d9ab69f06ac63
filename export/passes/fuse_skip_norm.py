"""Residual addition and normalization in one operator."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import same_known_shape


class FuseSkipNormPass(CheckedPass):
    """Rewrites Add + RMSNormalization to `com.microsoft.SkipSimplifiedLayerNormalization`.

    ONNX Runtime 1.31 fuses its own older form but not the RMSNormalization of opset 23. Fused is an
    Add of two values of one shape that feeds a normalization over the last of two or three axes,
    except where either is a graph output.
    """

    reads_shapes_of = ("Add",)

    def call(self, model: ir.Model) -> PassResult:
        """Fuses each pair; the sum stays available as the fused operator's fourth output."""
        modified = False
        for norm in list(model.graph):
            add = _added(norm)
            if add is not None:
                _fuse(model.graph, add, norm)
                modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
            model.graph.sort()
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each normalization whose addition can be taken in."""
        return (node for node in graph if _added(node) is not None)


def _added(norm: ir.Node) -> ir.Node | None:
    """The Add that can be fused into this node."""
    if norm.op_type != "RMSNormalization" or norm.inputs[0] is None:
        return None
    add = norm.inputs[0].producer()
    if add is None or add.op_type != "Add" or add.domain != "":
        return None
    weight, total = norm.inputs[1], add.outputs[0]
    if total.is_graph_output() or norm.outputs[0].is_graph_output():
        return None
    if not all(same_known_shape(value, total) for value in add.inputs):
        return None
    assert total.shape is not None
    rank = len(total.shape)
    over_last = norm.attributes.get_int("axis", -1) in (-1, rank - 1)
    one_weight = weight is not None and weight.shape is not None and len(weight.shape) == 1
    return add if over_last and one_weight and rank in (2, 3) else None


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    fused = ir.Node(
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
        [add.inputs[0], add.inputs[1], norm.inputs[1]],
        [ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))],
        num_outputs=4,
    )
    graph.insert_before(norm, fused)
    for index, old in ((0, norm.outputs[0]), (3, add.outputs[0])):
        new = fused.outputs[index]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new)
    for unused in fused.outputs[1:3]:
        unused.name = ""
    graph.remove([norm, add], safe=True)
