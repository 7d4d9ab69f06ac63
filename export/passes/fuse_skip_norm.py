"""Residual addition and normalization in one operator."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class FuseSkipNormPass(InPlacePass):
    """Rewrites Add + RMSNormalization to `com.microsoft.SkipSimplifiedLayerNormalization`.

    ONNX Runtime 1.31 fuses its own older form but not the RMSNormalization of opset 23.
    Requires: normalization over the last axis. Ensures: no Add feeds an RMSNormalization.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fuses each pair; the sum stays available as the fused operator's fourth output."""
        modified = False
        for norm in list(model.graph):
            if norm.op_type != "RMSNormalization" or norm.inputs[0] is None:
                continue
            add = norm.inputs[0].producer()
            if add is None or add.op_type != "Add" or not _same_shapes(add):
                continue
            fused = ir.Node(
                "com.microsoft",
                "SkipSimplifiedLayerNormalization",
                [add.inputs[0], add.inputs[1], norm.inputs[1]],
                [ir.AttrFloat32("epsilon", norm.attributes["epsilon"].as_float())],
                num_outputs=4,
            )
            model.graph.insert_before(norm, fused)
            norm.outputs[0].replace_all_uses_with(fused.outputs[0])
            add.outputs[0].replace_all_uses_with(fused.outputs[3])
            modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return PassResult(model, modified)


def _same_shapes(add: ir.Node) -> bool:
    left, right = add.inputs
    return left is not None and right is not None and left.shape == right.shape
