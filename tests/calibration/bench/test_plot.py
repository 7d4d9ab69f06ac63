"""Pictures of a benchmark."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.figures import check_texts_apart
from support.measurements.bench_rows import both, report_of, row

from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.bench.summary import summarize


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_plots_in_other_formats(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from medusa_trt.calibration.bench.plot import save_plot

    path = tmp_path / f"plot{suffix}"
    save_plot(report_of(both("a", 2, 1)), path)
    assert "<svg" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("num_categories", [1, 8])
def test_no_text_covers_another_one_or_a_point(num_categories: int) -> None:
    pytest.importorskip("matplotlib")
    from medusa_trt.calibration.bench.plot import _figure

    modes = BenchOptions().modes
    rows = [
        row(
            mode.name,
            prompt_id=str(index),
            category=f"category {index % num_categories}",
            lengths=(1, 3) if mode.drafts else (1, 1, 1, 1),
            decode_s=(0.3 + 0.05 * place if mode.drafts else 1) * (1 + index / 20),
        )
        for index in range(16)
        for place, mode in enumerate(modes)
    ]
    summary = summarize(rows, modes)
    check_texts_apart(_figure(replace(report_of(both("a", 2, 1)), summary=summary)))
