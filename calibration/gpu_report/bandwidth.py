"""How much of the memory's bandwidth the steps use."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from medusa_trt.calibration.latency.section import LatencyPoint
from medusa_trt.export.inspection import gpu_from_name, read_graph_facts
from medusa_trt.runtime.bundle import Bundle

_KEYS = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "Tesla T4": "t4",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
}
"""Keys of `export/gpus.json` by the driver's exact name; boards with other memory have others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthShare:
    """The bandwidth of one step.

    Attributes:
        context: tokens in the KV cache.
        num_nodes: nodes of the step.
        read_gb: weights and cache that the step reads at least, heads included.
        gb_per_s: that by the step's time.
        share: of the bandwidth that the GPU's maker states; None where it is not known.
    """

    context: int
    num_nodes: int
    read_gb: float
    gb_per_s: float
    share: float | None


def read_gpu_name() -> str | None:
    """Reads the name of the first GPU from its driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def find_bandwidth_gb_s(gpu_name: str | None, chosen: str | None = None) -> float | None:
    """Finds the bandwidth that a GPU's maker states; None where it is not in the table.

    Args:
        gpu_name: the name that the driver gives.
        chosen: a key of `export/gpus.json`, which counts instead.

    Raises:
        ExportError: there is no such key.
    """
    key = chosen or _KEYS.get(gpu_name or "")
    return None if key is None else gpu_from_name(key).bandwidth_gb_s


def compute_shares(
    bundle: Bundle, points: Iterable[LatencyPoint], bandwidth_gb_s: float | None
) -> list[BandwidthShare]:
    """Computes the bandwidth of each measured step from the bytes that it reads at least."""
    graphs = [name for name in ("verify", "heads") if name in bundle.manifest.graphs]
    weights = sum(read_graph_facts(bundle, name).read_bytes for name in graphs)
    shares = []
    for point in points:
        read_gb = (weights + bundle.count_cache_bytes(point.context)) / 1e9
        speed = read_gb / (point.step_ms.median / 1e3)
        shares.append(
            BandwidthShare(
                context=point.context,
                num_nodes=point.num_nodes,
                read_gb=read_gb,
                gb_per_s=speed,
                share=None if bandwidth_gb_s is None else speed / bandwidth_gb_s,
            )
        )
    return shares
