"""Formats the sections of the calibration report as tables for a terminal of 100 columns."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.quantization.section import QuantizationSection, text_from_counts
from medusa_trt.calibration.threshold.summary import Recommendation, ThresholdSection
from medusa_trt.calibration.trees.choice import Prediction
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.calibration.trees.tree_section import TreeSection

_SHOWN_KS = (1, 2, 3, 5, 10)
"""The k for which a top-k accuracy is shown."""


def tabulate_heads(section: HeadsSection) -> Table:
    """Lists each head's accuracies in percent.

    "all right %" says how often this head and all heads before it are right together, and "if
    independent %" how often that would be so if they were right independently of each other.
    """
    ks = [k for k in _SHOWN_KS if k <= len(section.top_k_accuracies[0])]
    columns = ["head", "samples", *(f"top-{k} %" for k in ks), "all right %", "if independent %"]
    rows = [
        [
            str(head + 1),
            str(section.counts[head]),
            *(f"{100 * accuracies[k - 1]:.1f}" for k in ks),
            f"{100 * section.joint[head]:.1f}",
            f"{100 * section.independent[head]:.1f}",
        ]
        for head, accuracies in enumerate(section.top_k_accuracies)
    ]
    return _table(columns, rows)


def tabulate_latency(section: LatencySection) -> Table:
    """Lists median step times with their intervals, a column for each context."""
    contexts = sorted({point.context for point in section.points})
    by_point = {(point.num_nodes, point.context): point for point in section.points}
    rows = []
    for num_nodes in sorted({point.num_nodes for point in section.points}):
        row = [str(num_nodes)]
        for context in contexts:
            point = by_point.get((num_nodes, context))
            time = point.step_ms if point else None
            row.append(f"{time.median:.2f} ({time.low:.2f}-{time.high:.2f})" if time else "-")
        rows.append(row)
    return _table(["nodes", *(f"ms after {context} tokens" for context in contexts)], rows)


def tabulate_tree(section: TreeSection) -> Table:
    """Lists plain decoding, the best tree of each measured size, and the fastest fixed trees."""
    choice = section.choice
    measured = (prediction for prediction in choice.by_size if prediction.is_measured)
    predictions = [choice.plain, *measured, *choice.fixed[:6]]
    columns = ["tree", "nodes", "depth", "tokens per step", "step ms", "tokens/s", "speedup (95 %)"]
    return _table(columns, [_prediction_row(prediction) for prediction in predictions])


def tabulate_threshold(section: ThresholdSection) -> Table:
    """Lists what was measured for each acceptance rule: typical acceptance, or the sampler.

    "gain (95 %)" is the log-likelihood minus the sampler's; "distinct-2" is the number of different
    pairs of tokens over the number of pairs; "same %" is the share of tokens that the sampler draws
    too, from the same random numbers.
    """
    columns = [
        "T",
        "ε",
        "tokens\nper step",
        "nats per\ntoken",
        "gain (95 %)",
        "distinct-2",
        "same %",
    ]
    rows = []
    for summary in section.rules:
        threshold, gain = summary.rule.posterior_threshold, summary.logprob_gain
        rows.append(
            [
                f"{summary.rule.temperature:g}",
                "sampler" if threshold is None else f"{threshold:g}",
                f"{summary.accept_length:.3f}",
                f"{summary.mean_logprob:.3f}",
                f"{gain.median:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
                f"{summary.distinct[1]:.3f}",
                f"{100 * summary.token_agreement:.1f}",
            ]
        )
    return _table(columns, rows)


def tabulate_plans(section: QuantizationSection) -> Table:
    """Lists size, KL divergence and acceptance length of each measured quantization plan."""
    columns = ["plan", "matrices", "MB", "KL predicted", "KL", "same tokens %", "tokens per step"]
    rows = [
        [
            plan.name,
            text_from_counts(plan.counts),
            f"{plan.size_bytes / 1e6:.1f}",
            "-" if plan.predicted_kl is None else f"{plan.predicted_kl:.4f}",
            f"{plan.kl:.4f}",
            f"{100 * plan.agreement:.1f}",
            f"{plan.accept_length:.3f}",
        ]
        for plan in section.plans
    ]
    return _table(columns, rows)


def _prediction_row(prediction: Prediction) -> list[str]:
    speedup = prediction.speedup
    return [
        prediction.method,
        f"{prediction.num_nodes}{'' if prediction.is_measured else '*'}",
        str(prediction.max_depth),
        f"{prediction.accept_length:.3f}",
        f"{prediction.step_ms:.2f}",
        f"{prediction.tokens_per_s:.1f}",
        f"{speedup.median:.3f} ({speedup.low:.3f}-{speedup.high:.3f})",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def text_from_recommendation(recommendation: Recommendation) -> str:
    """Says which acceptance is recommended at a temperature, and why."""
    rule = recommendation.rule
    if rule.posterior_threshold is None:
        use = "--acceptance sample"
    else:
        use = (
            f"--acceptance typical --temperature {rule.temperature:g} "
            f"--posterior-threshold {rule.posterior_threshold:g} "
            f"--posterior-alpha {rule.posterior_alpha:.3g}"
        )
    return f"Temperature {rule.temperature:g}: {use}; {recommendation.reason}."
