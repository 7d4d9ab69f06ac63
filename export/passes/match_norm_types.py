"""Normalizations whose input and weight have one type."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class MatchNormTypesPass(InPlacePass):
    """Casts the input of an `RMSNormalization` to its weight's type.

    The standard allows two types, as of a float16 model that scales in float32 (Gemma), but
    ONNX Runtime 1.31 then makes a graph that it refuses itself. Nothing is lost: the input is
    widened, as the operator does inside. Ensures: input and weight have the same type.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Inserts each cast."""
        modified = False
        for norm in list(model.graph):
            if norm.op_type != "RMSNormalization" or norm.domain != "":
                continue
            source, weight = norm.inputs[:2]
            if source is None or weight is None or source.dtype == weight.dtype:
                continue
            assert weight.dtype is not None
            cast = ir.Node("", "Cast", [source], [ir.AttrInt64("to", int(weight.dtype))])
            wide = cast.outputs[0]
            wide.name, wide.shape = f"{norm.outputs[0].name}.input", source.shape
            wide.type = ir.TensorType(weight.dtype)
            model.graph.insert_before(norm, cast)
            norm.replace_input_with(0, wide)
            modified = True
        return PassResult(model, modified)
