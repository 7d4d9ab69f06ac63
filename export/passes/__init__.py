"""Graph passes on onnx-ir, one a file. `optimize` runs them in order."""

import onnx_ir as ir
from onnx_ir.passes import PassManager
from onnx_ir.passes.common import (
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.passes.pack_qkv import PackQkvPass
from medusa_trt.export.passes.pack_split_qkv import PackSplitQkvPass
from medusa_trt.export.passes.quantize_linear import QuantizeLinearPass
from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass
from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass
from medusa_trt.export.passes.use_fast_selection import UseFastSelectionPass

__all__ = ["QuantizeLinearPass", "optimize"]


def optimize(model: ir.Model, quantize: QuantizeLinearPass | None = None) -> None:
    """Brings an exported graph into the form that ONNX Runtime runs fastest, in place.

    Args:
        model: the graph.
        quantize: where its products are to be quantized.
    """
    fuse = [FuseSkipNormPass()] if quantize is None else [quantize, UseFastSelectionPass()]
    PassManager(
        [
            RemoveIdentityRotaryPass(),
            RemoveUnusedNodesPass(),
            RemoveLayoutPairsPass(),
            PackQkvPass(),
            PackSplitQkvPass(),
            *fuse,
            RemoveUnusedNodesPass(),
            DeduplicateInitializersPass(),
            TopologicalSortPass(),
            RemoveUnusedOpsetsPass(),
        ]
    )(model)
