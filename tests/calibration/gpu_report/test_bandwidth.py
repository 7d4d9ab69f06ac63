"""The bandwidth of steps."""

import pytest

from medusa_trt.calibration.gpu_report import bandwidth
from medusa_trt.calibration.gpu_report.bandwidth import (
    compute_shares,
    find_bandwidth_gb_s,
    read_gpu_name,
)
from medusa_trt.calibration.intervals import Interval
from medusa_trt.calibration.latency.section import LatencyPoint
from medusa_trt.errors import ExportError
from medusa_trt.export.inspection import load_gpus
from medusa_trt.runtime.bundle import Bundle


def test_only_exact_names_of_gpus_are_known() -> None:
    assert set(bandwidth._KEYS.values()) <= load_gpus().keys()
    assert find_bandwidth_gb_s("NVIDIA H100 80GB HBM3") == 3350
    assert find_bandwidth_gb_s("NVIDIA H100 PCIe") is None
    assert find_bandwidth_gb_s("NVIDIA H100 PCIe", "l4") == 300
    assert find_bandwidth_gb_s(None) is None
    with pytest.raises(ExportError, match="unknown GPU 'h1'"):
        find_bandwidth_gb_s(None, "h1")


def test_the_share_is_of_weights_and_cache(tiny_bundle: Bundle) -> None:
    point = LatencyPoint(
        context=100,
        num_nodes=4,
        num_samples=1,
        step_ms=Interval(2.0, 2.0, 2.0),
        engine_ms=1.0,
        host_ms=1.0,
    )
    (share,) = compute_shares(tiny_bundle, [point], 0.5)
    longer = compute_shares(tiny_bundle, [point], None)[0]
    assert share.read_gb > tiny_bundle.count_cache_bytes(100) / 1e9
    assert share.gb_per_s == pytest.approx(share.read_gb / 0.002)
    assert share.share == pytest.approx(share.gb_per_s / 0.5) and longer.share is None


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert read_gpu_name() is None
