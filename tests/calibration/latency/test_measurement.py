"""Which step times are still to be measured."""

from support.measurements.latency_records import latency

from medusa_trt.calibration.latency.measurement import list_missing_points
from medusa_trt.calibration.options import LatencyOptions


def test_only_missing_samples_are_measured() -> None:
    options = LatencyOptions(sizes=(1, 4), contexts=(16, 64), rounds=2)
    points = list_missing_points(options, [])
    assert len(set(points)) == len(points) == 8
    assert [round_ for round_, _, _ in points] == [1] * 4 + [2] * 4
    done = [latency(16, 4, 1.0, 2), latency(64, 1, 1.0, 1)]
    left = list_missing_points(options, done)
    assert left == [point for point in points if point not in ((2, 16, 4), (1, 64, 1))]
