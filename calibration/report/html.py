"""The calibration report as one HTML page with its plots inside."""

from importlib import resources
from pathlib import Path

import jinja2

from medusa_trt.calibration.report.plots import (
    can_plot,
    plot_heads,
    plot_latency,
    plot_quantization,
    plot_threshold,
    plot_tree,
)
from medusa_trt.calibration.report.results import Calibration
from medusa_trt.files import replace_file

HTML_FILE = "report.html"


def save_page(folder: Path, calibration: Calibration) -> None:
    """Writes the page, whole or not at all.

    Raises:
        MedusaError: the file cannot be written.
    """
    with replace_file(folder / HTML_FILE) as temporary:
        temporary.write_text(page_from_calibration(calibration), encoding="utf-8")


def page_from_calibration(calibration: Calibration) -> str:
    """Renders the page. Without matplotlib it has no plots, and a line that says so."""
    plots: dict[str, str] = {}
    if can_plot():
        if calibration.heads is not None:
            plots["heads"] = plot_heads(calibration.heads)
        for index, section in enumerate(calibration.latency):
            plots[f"latency {index}"] = plot_latency(section)
        if calibration.tree is not None:
            plots["tree"] = plot_tree(calibration.tree)
        if calibration.threshold is not None and calibration.threshold.rules:
            plots["threshold"] = plot_threshold(calibration.threshold)
        if calibration.quantization is not None:
            plots["quantization"] = plot_quantization(calibration.quantization)
    file = resources.files("medusa_trt.calibration.report") / "report.html.jinja"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(file.read_text(encoding="utf-8"))
    return template.render(calibration=calibration, plots=plots, has_plots=can_plot())
