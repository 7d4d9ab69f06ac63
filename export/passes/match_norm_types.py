"""Normalizations whose input and weight have one type."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass


class MatchNormTypesPass(CheckedPass):
    """Casts the input of an `RMSNormalization` to its weight's type.

    The standard allows two types, as of a float16 model that scales in float32 (Gemma), but
    ONNX Runtime 1.31 then makes a graph that it refuses itself. Nothing is lost: the input is
    widened, as the operator does inside.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Inserts each cast."""
        modified = False
        for norm in list(model.graph):
            if not _has_two_types(norm):
                continue
            source, weight = norm.inputs[:2]
            assert source is not None and weight is not None and weight.dtype is not None
            cast = ir.Node("", "Cast", [source], [ir.AttrInt64("to", int(weight.dtype))])
            wide = cast.outputs[0]
            wide.name, wide.shape = f"{norm.outputs[0].name}.input", source.shape
            wide.type = ir.TensorType(weight.dtype)
            model.graph.insert_before(norm, cast)
            norm.replace_input_with(0, wide)
            modified = True
        return PassResult(model, modified)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each normalization of two types."""
        return (node for node in graph if _has_two_types(node))


def _has_two_types(node: ir.Node) -> bool:
    if node.op_type != "RMSNormalization" or node.domain != "":
        return False
    source, weight = node.inputs[:2]
    return source is not None and weight is not None and source.dtype != weight.dtype
