"""Curves of step times."""

import pytest
from support.measurements.latency_records import latency

from medusa_trt.calibration.latency.curve import LatencyCurve, select_records
from medusa_trt.errors import CalibrationError


def test_times_are_medians_and_interpolated_between_what_was_measured() -> None:
    records = [
        latency(context, size, context / 100 + size + noise, round_)
        for context in (100, 300)
        for size in (1, 4, 8)
        for round_, noise in enumerate((0.0, 0.1, 50.0), start=1)
    ]
    curve = LatencyCurve.from_records(records)
    assert curve.step_ms(4, 100) == pytest.approx(5.1)
    assert curve.step_ms(6, 150) == pytest.approx(7.6)
    assert curve.is_measured(8) and not curve.is_measured(6)
    assert curve.covers(6) and not curve.covers(9)
    resampled = curve.resample_step_ms(6, 150)
    assert resampled.shape == (1000,)
    assert resampled.min() == pytest.approx(7.5) and resampled.max() == pytest.approx(57.5)
    for size, context in ((9, 100), (4, 99), (4, 301)):
        with pytest.raises(CalibrationError, match="lies outside what was measured"):
            curve.step_ms(size, context)


def test_a_size_that_an_interruption_left_out_somewhere_does_not_count() -> None:
    curve = LatencyCurve.from_records([latency(1, 1, 1), latency(1, 2, 1), latency(9, 1, 1)])
    assert curve.sizes == [1]


def test_records_of_another_machine_number_of_threads_or_batch_size_do_not_count() -> None:
    record = latency(1, 1, 1)
    assert select_records([record], ("m", None, 1)) == [record]
    for kind in (("another machine", None, 1), ("m", 2, 1), ("m", None, 2)):
        assert select_records([record], kind) == []
