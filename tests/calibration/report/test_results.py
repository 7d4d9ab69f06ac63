"""The file of results."""

from pathlib import Path

import pytest

from medusa_trt.calibration.report.results import Calibration, load_calibration
from medusa_trt.errors import CalibrationError


def report(bundle: Path) -> Calibration:
    empty = Calibration(model="", target="", precision="")
    return load_calibration(bundle / "calibration", empty)


def test_a_damaged_report_is_named(bundle: Path) -> None:
    (bundle / "calibration").mkdir()
    (bundle / "calibration" / "calibration.json").write_text("{")
    with pytest.raises(CalibrationError, match=r"cannot read .*calibration.json"):
        report(bundle)
