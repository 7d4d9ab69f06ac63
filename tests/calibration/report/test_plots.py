"""Pictures of the calibrations."""

import pytest
from matplotlib.figure import Figure
from support.figures import check_texts_apart
from support.measurements.calibrations import HEADS, LATENCY, QUANTIZATION, THRESHOLD, TREE

from medusa_trt.calibration.report import plots


def test_no_text_covers_another_one_or_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_render_svg", figures.append)
    plots.plot_heads(HEADS)
    plots.plot_latency(LATENCY)
    plots.plot_tree(TREE)
    plots.plot_threshold(THRESHOLD)
    plots.plot_quantization(QUANTIZATION)
    for figure in figures:
        check_texts_apart(figure)
