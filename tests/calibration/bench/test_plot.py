"""Pictures of a benchmark."""

from pathlib import Path

import pytest
from support.measurements.bench_rows import both, report_of


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_plots_in_other_formats(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from medusa_trt.calibration.bench.plot import save_plot

    path = tmp_path / f"plot{suffix}"
    save_plot(report_of(both("a", 2, 1)), path)
    assert "<svg" in path.read_text(encoding="utf-8")
