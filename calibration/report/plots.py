"""Draws the results of the calibrations as SVG text. matplotlib is imported only to draw."""

from io import StringIO
from typing import TYPE_CHECKING

from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.quantization.section import PLAN, UNQUANTIZED, QuantizationSection
from medusa_trt.calibration.threshold.summary import ThresholdSection
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.calibration.trees.tree_section import TreeSection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def plot_heads(section: HeadsSection) -> str:
    """Draws the top-k accuracy of each head, and how often all heads are right together."""
    figure, (left, right) = _make_figure(2)
    for head, accuracies in enumerate(section.top_k_accuracies):
        ks = range(1, len(accuracies) + 1)
        left.plot(ks, accuracies, marker="o", markersize=3, label=f"head {head + 1}")
    _finish(left, "Share of true tokens among the first k candidates", "k")
    left.set_ylim(0, 1)
    depths = range(1, len(section.joint) + 1)
    right.plot(depths, section.joint, marker="o", label="measured")
    right.plot(depths, section.independent, marker="o", linestyle="--", label="if independent")
    right.set_xticks(list(depths))
    _finish(right, "Share of positions with all heads right up to a depth", "depth")
    right.set_ylim(bottom=0)
    return _render_svg(figure)


def plot_latency(section: LatencySection) -> str:
    """Draws step time against number of nodes, with a line for each context."""
    figure, (axes,) = _make_figure(1)
    for context in dict.fromkeys(point.context for point in section.points):
        points = [point for point in section.points if point.context == context]
        times = [point.step_ms for point in points]
        axes.errorbar(
            [point.num_nodes for point in points],
            [time.median for time in times],
            yerr=[
                [max(0.0, time.median - time.low) for time in times],
                [max(0.0, time.high - time.median) for time in times],
            ],
            marker="o",
            markersize=3,
            capsize=2,
            label=f"after {context} tokens",
        )
    _finish(axes, "Milliseconds of a step", "nodes")
    axes.set_ylim(bottom=0)
    return _render_svg(figure)


def plot_tree(section: TreeSection) -> str:
    """Draws acceptance length and speedup of the best tree of each size, and of fixed trees."""
    figure, (left, right) = _make_figure(2)
    best, fixed, chosen = section.choice.by_size, section.choice.fixed, section.choice.chosen
    for axes, title in ((left, "Tokens a step"), (right, "Speedup over plain decoding")):
        for predictions, style, label in ((best, "-o", "searched"), (fixed, "x", "fixed trees")):
            values = [p.accept_length if axes is left else p.speedup.median for p in predictions]
            axes.plot([p.num_nodes for p in predictions], values, style, markersize=4, label=label)
        _finish(axes, title, "nodes")
    right.fill_between(
        [p.num_nodes for p in best],
        [p.speedup.low for p in best],
        [p.speedup.high for p in best],
        alpha=0.2,
        linewidth=0,
    )
    right.axhline(1, color="#999999", linewidth=1, linestyle="--")
    right.axvline(chosen.num_nodes, color="#4b9a52", linewidth=1)
    return _render_svg(figure)


def plot_threshold(section: ThresholdSection) -> str:
    """Draws acceptance length and likelihood against the threshold, as in the paper."""
    figure, (left, right) = _make_figure(2)
    temperatures = dict.fromkeys(summary.rule.temperature for summary in section.rules)
    for colour, temperature in enumerate(temperatures):
        group = [summary for summary in section.rules if summary.rule.temperature == temperature]
        typical = [s for s in group if s.rule.posterior_threshold is not None]
        sampler = next(s for s in group if s.rule.posterior_threshold is None)
        thresholds = [s.rule.posterior_threshold or 0.0 for s in typical]
        for axes, values, sampler_value in (
            (left, [s.accept_length for s in typical], sampler.accept_length),
            (right, [s.mean_logprob for s in typical], sampler.mean_logprob),
        ):
            axes.plot(
                thresholds, values, "-o", color=f"C{colour}", label=f"temperature {temperature:g}"
            )
            axes.axhline(sampler_value, color=f"C{colour}", linestyle="--", linewidth=1)
    _finish(left, "Tokens a step (dashed: the sampler)", "threshold ε")
    _finish(right, "Log-likelihood, nats per token", "threshold ε")
    return _render_svg(figure)


def plot_quantization(section: QuantizationSection) -> str:
    """Draws the KL divergence of each site over the layers, and that of each plan over its size.

    A site's KL divergence is that of the model in which only this site is rounded, to the first
    format that was estimated.
    """
    figure, (left, right) = _make_figure(2)
    shown_format = section.sites[0].costs[0].format if section.sites[0].costs else ""
    for kind in dict.fromkeys(site.kind for site in section.sites):
        points = [
            (site.layer, cost.kl)
            for site in section.sites
            for cost in site.costs
            if site.kind == kind and cost.format == shown_format
        ]
        layers = [layer for layer, _ in points if layer is not None]
        if layers:
            left.plot(layers, [kl for _, kl in points], "-o", markersize=3, label=kind)
        for _, kl in points if not layers else ():
            left.axhline(kl, color="#999999", linestyle="--", linewidth=1, label=kind)
    left.set_yscale("log")
    _finish(left, f"KL divergence of one matrix in {shown_format}, nats (estimated)", "layer")
    sizes = [point.size_bytes / 1e6 for point in section.frontier]
    right.plot(sizes, [p.predicted_kl for p in section.frontier], label="best, predicted")
    for plan in section.plans:
        if plan.name != UNQUANTIZED:
            marker = "*" if plan.name == PLAN else "o"
            right.plot(plan.size_bytes / 1e6, plan.kl, marker, label=plan.name)
    right.set_yscale("log")
    _finish(right, "KL divergence of plans, nats (points: measured)", "MB")
    return _render_svg(figure)


def _make_figure(num_axes: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * num_axes, 3.6), layout="constrained")
    return figure, list(figure.subplots(1, num_axes, squeeze=False)[0])


def _finish(axes: "Axes", title: str, xlabel: str) -> None:
    """Adds title, axis label and a legend beside the axes, where it covers nothing."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _render_svg(figure: "Figure") -> str:
    text = StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
