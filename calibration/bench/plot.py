"""A benchmark's report as a picture. matplotlib is imported only to draw it."""

from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_trt.calibration.bench.report import BenchReport
from medusa_trt.calibration.bench.summary import (
    CategorySummary,
    ModeSummary,
    Quartiles,
    find_longest_step,
)
from medusa_trt.calibration.bench.tables import select_main_categories
from medusa_trt.errors import MedusaError, require_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".html")
_COLOURS = {
    "greedy plain": "#a8bdd1",
    "greedy Medusa": "#2f6ba6",
    "heads alone": "#7d6bb5",
    "sample plain": "#e3c3a0",
    "sample Medusa": "#d9791e",
    "typical Medusa": "#4b9a52",
}


def check_plot_path(path: Path) -> None:
    """Refuses a picture that cannot be drawn.

    Raises:
        MedusaError: the suffix is unknown, or matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise MedusaError(f"cannot draw {path}: its name must end in {', '.join(_SUFFIXES)}")
    with require_extra("drawing", "bench", otherwise="leave out --plot"):
        import matplotlib.figure  # noqa: F401


def save_plot(report: BenchReport, path: Path) -> None:
    """Draws throughput, speedups, acceptance lengths, and categories or step times.

    Args:
        report: the report.
        path: file to write; its suffix decides the format, see `check_plot_path`.
    """
    figure = _figure(report)
    if path.suffix != ".html":
        figure.savefig(path, dpi=150)
        return
    svg = StringIO()
    figure.savefig(svg, format="svg")
    title = f"{escape(report.setup.model)}: Medusa and plain decoding"
    picture = svg.getvalue()
    picture = picture[picture.index("<svg") :]
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>svg {{ max-width: 100%; height: auto }}</style></head>\n<body>{picture}"
        f"<p><code>{escape(report.command)}</code>, {escape(report.date)}</p></body></html>\n",
        encoding="utf-8",
    )


def _figure(report: BenchReport) -> "Figure":
    from matplotlib.figure import Figure

    setup, summary = report.setup, report.summary
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        f"{setup.model} on {setup.target}, {setup.precision}; {setup.tree_text}; "
        f"{report.num_prompts_done} prompts of {setup.prompts}\n"
        f"{report.machine.cpu}, {report.machine.num_usable_cores} cores",
        fontsize=11,
    )
    (speed, speedup), (accepted, last) = figure.subplots(2, 2)
    drafting = [mode for mode in summary.modes if mode.depth_shares]
    _draw_speed(speed, summary.modes)
    _draw_speedups(speedup, drafting)
    _draw_accept_histogram(accepted, drafting)
    categories = select_main_categories(summary)
    if len(categories) > 1:
        _draw_categories(last, categories)
    else:
        _draw_step_times(last, summary.modes)
    for axes in (speed, speedup, accepted, last):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_speed(axes: "Axes", modes: Sequence[ModeSummary]) -> None:
    speeds = [mode.tokens_per_s or Quartiles(0, 0, 0) for mode in modes]
    names = [mode.name for mode in modes]
    medians = [values.median for values in speeds]
    axes.barh(names, medians, color=[_COLOURS[name] for name in names])
    errors = [
        [values.median - values.low for values in speeds],
        [values.high - values.median for values in speeds],
    ]
    axes.errorbar(medians, names, xerr=errors, fmt="none", ecolor="#333333", capsize=3)
    for place, values in enumerate(speeds):
        axes.text(values.high, place, f"  {values.median:.1f}", va="center", fontsize=9)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title("Tokens per second: median and quartiles over prompts", fontsize=10)


def _draw_speedups(axes: "Axes", modes: Sequence[ModeSummary]) -> None:
    for index, mode in enumerate(modes):
        values = sorted(mode.speedup_by_prompt.values())
        if mode.speedup is None:
            continue
        step = 0.4 / max(1, len(values) - 1)
        places = [index - 0.3 + step * place for place in range(len(values))]
        axes.scatter(places, values, s=14, color=_COLOURS[mode.name], alpha=0.8, linewidths=0)
        ends = (index - 0.35, index + 0.15)
        axes.hlines(mode.speedup.median, *ends, color="#333333", linewidth=2)
        for edge in (mode.speedup.low, mode.speedup.high):
            axes.hlines(edge, *ends, color="#333333", linewidth=0.8)
        label = f" {mode.speedup.median:.2f}x"
        axes.text(ends[1], mode.speedup.median, label, va="center", fontsize=9)
    axes.axhline(1, color="#999999", linewidth=1, linestyle="--")
    names = [mode.name.replace(" ", "\n") for mode in modes]
    axes.set_xticks([index - 0.1 for index in range(len(modes))], names)
    axes.set_xlim(-0.6, len(modes) - 0.4)
    axes.set_title("Speedup over plain decoding with the same sampling", fontsize=10)


def _draw_accept_histogram(axes: "Axes", modes: Sequence[ModeSummary]) -> None:
    width, longest = 0.8 / max(1, len(modes)), find_longest_step(modes)
    for index, mode in enumerate(modes):
        counts = mode.accept_histogram[:longest]
        shares = [100 * count / max(1, mode.num_steps) for count in counts]
        places = [
            1 + place + (index - (len(modes) - 1) / 2) * width for place in range(len(shares))
        ]
        label = mode.name
        if mode.mean_accept_length is not None:
            label += f", mean {mode.mean_accept_length:.2f}"
        axes.bar(places, shares, width, label=label, color=_COLOURS[mode.name])
    axes.set_xticks(range(1, 1 + longest))
    axes.set_ylabel("% of steps")
    axes.margins(y=0.3)  # Leaves room for the legend.
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_title("Tokens that a step adds", fontsize=10)


def _draw_categories(axes: "Axes", categories: Sequence[CategorySummary]) -> None:
    names = [category.category or "-" for category in categories]
    medians = [category.speedup.median if category.speedup else 0.0 for category in categories]
    bars = axes.barh(names, medians, color=_COLOURS[categories[0].mode])
    labels = [
        f"{category.speedup.median:.2f}x at {category.mean_accept_length:.2f}"
        if category.speedup and category.mean_accept_length
        else ""
        for category in categories
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.axvline(1, color="#999999", linewidth=1, linestyle="--")
    axes.margins(x=0.35)
    axes.invert_yaxis()
    axes.set_title(f"{categories[0].mode}: speedup at tokens per step, by category", fontsize=10)


def _draw_step_times(axes: "Axes", modes: Sequence[ModeSummary]) -> None:
    names = [mode.name for mode in modes]
    engine_ms = [_ms(mode.engine_us_per_step) for mode in modes]
    host_ms = [_ms(mode.host_us_per_step) for mode in modes]
    axes.barh(names, engine_ms, color=[_COLOURS[name] for name in names])
    axes.barh(names, host_ms, left=engine_ms, color="#777777")
    axes.invert_yaxis()
    axes.set_title("Milliseconds of a step: engine, then host in grey", fontsize=10)


def _ms(values: Quartiles | None) -> float:
    return values.median / 1e3 if values else 0.0
