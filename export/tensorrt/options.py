"""What `medusa-trt build` is asked for."""

import re
from dataclasses import dataclass
from pathlib import Path

from medusa_trt.errors import BuildError

MAX_TREE_NODES = 128
_MIN_LENGTH = 64
_ROW_MULTIPLE = 16
"""A row of the cache has at least 16 bytes, and TensorRT wants tensors at multiples of 256."""


def num_cache_rows(max_length: int, max_tree_nodes: int) -> int:
    """Rows of a cache slot: the longest sequence and a step's nodes, so that slots are aligned."""
    return -(-(max_length + max_tree_nodes) // _ROW_MULTIPLE) * _ROW_MULTIPLE


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build and for what.

    Attributes:
        target: "tensorrt", "tensorrt-rtx" or "tensorrt-jetson"; the bundle's own by default.
        output: the folder of the engines; by default one in the bundle, named after target and
            compute capabilities.
        compute_capabilities: GPUs to build for, as "8.6"; this machine's by default.
        max_length: longest sequence in tokens, which fixes the cache's size; the bundle's limit
            by default.
        max_batch_size: most sequences of one step.
        max_tree_nodes: most nodes of one step; at least those of the bundle's tree.
        prefill_chunk: most tokens of one prefill step; the bundle's by default.
        merge_tree: make the bundle's tree a constant of the verify engine; prefill, plain decoding
            and other trees then have an engine of their own, with the weights once more.
        workspace_mib: limit on scratch memory; TensorRT's own (all of the GPU's) by default.
        optimization_level: 0 (fastest build) to 5 (fastest engine); TensorRT's own by default.
        timing_cache: a file of kernel timings, reused and added to; one beside the engines'
            folder by default, where the product has such a cache.
        version_compatible: let later versions load the engines.
        hardware_compatible: let GPUs from compute capability 8.0 on load them.
        refittable: let the weights be replaced later.
        strip_weights: leave the weights out; loading takes them from the bundle.
        weight_streaming: allow weights to stay in host memory.
        overwrite: replace engines that are there.
    """

    target: str | None = None
    output: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    max_length: int | None = None
    max_batch_size: int = 1
    max_tree_nodes: int = 64
    prefill_chunk: int | None = None
    merge_tree: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, int | None, int, int], ...] = (
            ("max_length", self.max_length, _MIN_LENGTH, 1 << 20),
            ("max_batch_size", self.max_batch_size, 1, 256),
            ("max_tree_nodes", self.max_tree_nodes, 1, MAX_TREE_NODES),
            ("prefill_chunk", self.prefill_chunk, 1, 1 << 14),
            ("workspace_mib", self.workspace_mib, 1, 1 << 20),
            ("optimization_level", self.optimization_level, 0, 5),
        )
        for name, value, low, high in limits:
            if value is not None and not low <= value <= high:
                raise BuildError(f"{name} is {value}: it must be {low} to {high}")
        if self.merge_tree and self.strip_weights:
            raise BuildError(
                "an engine without weights takes them from the graph, which has no tree: leave "
                "out --merge-tree or --strip-weights"
            )
        for capability in self.compute_capabilities:
            if re.fullmatch(r"\d{1,2}\.\d", capability) is None:
                raise BuildError(f"compute capability {capability!r} is not of the form 8.6")
