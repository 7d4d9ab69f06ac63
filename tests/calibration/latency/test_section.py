"""The report's section on step times."""

from support.measurements.calibrations import LATENCY
from support.measurements.latency_records import latency

from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.options import LatencyOptions


def test_points_are_medians_and_a_busy_machine_is_named() -> None:
    records = [latency(16, 4, ms, round_) for round_, ms in enumerate((3.0, 9.0, 4.0), start=1)]
    options = LatencyOptions(batch_size=2)
    section = LatencySection.from_records(records, 1, options, LATENCY.origin)
    (point,) = section.points
    assert (point.context, point.num_nodes, point.num_samples) == (16, 4, 3)
    assert point.step_ms.median == 4.0 and point.step_ms.low <= 4.0 <= point.step_ms.high
    assert point.host_ms == 0.0 and section.kind == (2, 1)
    assert section.warning is not None and section.warning.endswith("--again.")
    assert LATENCY.warning is None
