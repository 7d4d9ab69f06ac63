"""Options of the report."""

import pytest

from medusa_trt.calibration.gpu_report.options import GpuReportOptions
from medusa_trt.errors import CalibrationError


@pytest.mark.parametrize(
    "options", [{"num_prompts": 0}, {"sizes": ()}, {"contexts": (0,)}, {"stage_minutes": 0.0}]
)
def test_wrong_options_are_refused_with_their_value(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(CalibrationError, match=name):
        GpuReportOptions(**options)  # type: ignore[arg-type]
