"""Options of a TensorRT build."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medusa_trt.errors import BuildError, check_range
from medusa_trt.types_of_options import check_types

MAX_TREE_NODES = 128
_MIN_LENGTH = 64
_ROW_MULTIPLE = 16
"""TensorRT wants tensors at multiples of 256 bytes, which are 16 rows of at least 16 bytes."""


def count_cache_rows(max_length: int, max_tree_nodes: int) -> int:
    """Rows of one sequence's cache: its tokens and a step's nodes, rounded up for alignment."""
    return -(-(max_length + max_tree_nodes) // _ROW_MULTIPLE) * _ROW_MULTIPLE


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What engines are built, and for which GPUs.

    Attributes:
        target: the product, and the kind of machine (default: the bundle's target).
        output: folder of the engines (default: a folder in the bundle, named after the target and
            the compute capabilities).
        compute_capabilities: compute capability of a GPU to build for, as 8.6; for tensorrt-rtx the
            flag may be repeated (default: this machine's).
        max_length: longest sequence, in tokens, which fixes the size of the KV cache (default: the
            bundle's).
        max_batch_size: most sequences of one step.
        max_tree_nodes: most nodes of one step; at least those of the bundle's tree.
        prefill_chunk: most tokens of one prefill step (default: the bundle's).
        merge_tree: make the bundle's tree a constant of the verify engine. Prefill, plain decoding
            and other trees then have an engine of their own, with another copy of the weights.
        workspace_mib: limit on scratch memory, in MiB (default: all of the GPU's memory).
        optimization_level: from 0, the fastest build, to 5, the fastest engine (default:
            TensorRT's).
        timing_cache: a file of kernel timings to reuse and to add to (default: one beside the
            engines' folder, where the product has such a cache).
        version_compatible: let later versions load the engines.
        hardware_compatible: let all GPUs of compute capability 8.0 or later load the engines.
        refittable: let the weights be replaced later.
        strip_weights: leave the weights out of the engines, which then read the bundle's.
        weight_streaming: let weights stay in the memory of the host.
        overwrite: replace engines that exist.
    """

    target: Annotated[str | None, "--target {tensorrt,tensorrt-rtx,tensorrt-jetson}"] = None
    output: Annotated[Path | None, "--output FOLDER"] = None
    compute_capabilities: Annotated[tuple[str, ...], "--compute-capability X.Y"] = ()
    max_length: int | None = None
    max_batch_size: int = 1
    max_tree_nodes: int = 64
    prefill_chunk: int | None = None
    merge_tree: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Annotated[Path | None, "--timing-cache FILE"] = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_types(self, BuildError)
        check_range(self, BuildError, "max_length", _MIN_LENGTH, 1 << 20)
        check_range(self, BuildError, "max_batch_size", 1, 256)
        check_range(self, BuildError, "max_tree_nodes", 1, MAX_TREE_NODES)
        check_range(self, BuildError, "prefill_chunk", 1, 1 << 14)
        check_range(self, BuildError, "workspace_mib", 1, 1 << 20)
        check_range(self, BuildError, "optimization_level", 0, 5)
        if self.merge_tree and self.strip_weights:
            raise BuildError(
                "an engine without weights reads them from the graph, which has no tree: leave "
                "out --merge-tree or --strip-weights"
            )
        for capability in self.compute_capabilities:
            if re.fullmatch(r"\d{1,2}\.\d", capability) is None:
                raise BuildError(f"compute capability {capability!r} is not of the form 8.6")
