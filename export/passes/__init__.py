"""Graph passes on onnx-ir, one a file. `optimize` runs them in order."""

import onnx_ir as ir
from onnx_ir.passes import PassBase, PassManager
from onnx_ir.passes.common import (
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from medusa_trt.export.passes.chain_linears import ChainLinearsPass
from medusa_trt.export.passes.fuse_skip_norm import FuseSkipNormPass
from medusa_trt.export.passes.match_norm_types import MatchNormTypesPass
from medusa_trt.export.passes.name_products import NameProductsPass
from medusa_trt.export.passes.pack_qkv import PackQkvPass
from medusa_trt.export.passes.pack_split_qkv import PackSplitQkvPass
from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass
from medusa_trt.export.passes.remove_layout_pairs import RemoveLayoutPairsPass
from medusa_trt.export.passes.use_fast_selection import UseFastSelectionPass


def optimize(
    model: ir.Model,
    quantize: PassBase | None = None,
    *,
    portable: bool = False,
    attends: bool = True,
) -> None:
    """Brings an exported graph into the form that its engine runs fastest, in place.

    Args:
        model: the graph.
        quantize: where its weights are to be quantized.
        portable: keep to standard operators; otherwise those of ONNX Runtime, and with `quantize`
            those of the operator library, are used.
        attends: whether the graph has attention, whose projections are packed.
    """
    fuse: list[PassBase] = [] if quantize is None else [quantize]
    if not portable:
        fuse.append(FuseSkipNormPass() if quantize is None else UseFastSelectionPass())
    chain = [] if quantize is None or portable else [TopologicalSortPass(), ChainLinearsPass()]
    packs = [PackQkvPass(), PackSplitQkvPass()] if attends else []
    names = [NameProductsPass()] if portable else []
    PassManager(
        [
            RemoveIdentityRotaryPass(),
            RemoveUnusedNodesPass(),
            RemoveLayoutPairsPass(),
            *packs,
            RemoveUnusedNodesPass(),
            *names,
            MatchNormTypesPass(),
            *fuse,
            RemoveUnusedNodesPass(),
            *chain,
            DeduplicateInitializersPass(),
            TopologicalSortPass(),
            RemoveUnusedOpsetsPass(),
        ]
    )(model)
