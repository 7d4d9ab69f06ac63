"""Step times that are made by hand, and the choice of a tree by them."""

from dataclasses import replace

import pytest
from support.measurements.ranks import table_of

from medusa_trt.calibration.latency.curve import LatencyCurve, LatencyRecord
from medusa_trt.calibration.latency.measurement import LatencyMeter
from medusa_trt.calibration.options import TreeOptions
from medusa_trt.calibration.trees.choice import TreeChoice, choose_tree
from medusa_trt.runtime.session import GenerationStats
from medusa_trt.tree_configs import chain_tree


def latency(context: int, num_nodes: int, step_ms: float, round_: int = 1) -> LatencyRecord:
    return LatencyRecord(
        machine="m",
        threads=None,
        batch_size=1,
        context=context,
        num_nodes=num_nodes,
        round=round_,
        num_steps=5,
        step_ms=step_ms,
        engine_ms=step_ms,
    )


def curve_of(step_ms: dict[int, float]) -> LatencyCurve:
    return LatencyCurve.from_records(
        [latency(16, size, time, round_) for size, time in step_ms.items() for round_ in (1, 2, 3)]
    )


def choose_by_times(step_ms: dict[int, float], options: TreeOptions | None = None) -> TreeChoice:
    return choose_tree(
        table_of(30),
        curve_of(step_ms),
        num_heads=3,
        top_k=4,
        context=16,
        bundle_tree=chain_tree(2),
        options=options or TreeOptions(),
    )


def set_step_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Makes a step take 5 ms and as much for each node, or what a test sets, in every sample."""
    times = {"fixed": 5.0, "of a node": 5.0}
    sample = LatencyMeter._sample

    def timed(meter: LatencyMeter, context: int, num_nodes: int) -> GenerationStats:
        stats = sample(meter, context, num_nodes)
        step_s = 1e-3 * (times["fixed"] + times["of a node"] * num_nodes)
        total_s = len(stats.accept_lengths) * step_s
        return replace(stats, decode_s=total_s, engine_s=0.9 * total_s)

    monkeypatch.setattr(LatencyMeter, "_sample", timed)
    return times
