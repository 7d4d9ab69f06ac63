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
from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass
from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass


def optimize(model: ir.Model) -> None:
    """Brings an exported verify graph into the form that ONNX Runtime runs fastest, in place."""
    PassManager(
        [
            RemoveIdentityRotaryPass(),
            RemoveUnusedNodesPass(),
            RemoveLayoutPairsPass(),
            PackQkvPass(),
            PackSplitQkvPass(),
            FuseSkipNormPass(),
            RemoveUnusedNodesPass(),
            DeduplicateInitializersPass(),
            TopologicalSortPass(),
            RemoveUnusedOpsetsPass(),
        ]
    )(model)
