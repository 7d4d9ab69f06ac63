"""Logs of measurements."""

from pathlib import Path

import pytest
from support.measurements.latency_records import latency

from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.errors import CalibrationError


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    path.write_text('{"settings": 1}\n')
    with pytest.raises(CalibrationError, match=r"line 1 of .*ranks.jsonl is damaged"):
        RecordLog(path, RankRecord)


def test_forgotten_records_leave_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "latency.jsonl"
    log = RecordLog(path, LatencyRecord)
    log.forget(lambda _: True)
    assert not path.exists()
    for num_nodes in (1, 2, 4):
        log.append(latency(16, num_nodes, 5.0))
    log.forget(lambda record: record.num_nodes == 2)
    log.append(latency(16, 8, 5.0))
    for records in (log.records, RecordLog(path, LatencyRecord).records):
        assert [record.num_nodes for record in records] == [1, 4, 8]
