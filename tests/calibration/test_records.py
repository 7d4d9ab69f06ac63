"""Logs of measurements."""

from pathlib import Path

import pytest

from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.trees.head_ranks import (
    RankRecord,
)
from medusa_trt.errors import CalibrationError


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    path.write_text('{"settings": 1}\n')
    with pytest.raises(CalibrationError, match=r"line 1 of .*ranks.jsonl is damaged"):
        RecordLog(path, RankRecord)
