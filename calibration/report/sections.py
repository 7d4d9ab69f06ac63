"""Sections of the calibration report, from what was recorded."""

from collections.abc import Iterable, Sequence

import numpy as np

from medusa_trt.calibration.calibrate_options import LatencyOptions, ReplySettings, TreeOptions
from medusa_trt.calibration.latency.curve import (
    LatencyCurve,
    LatencyRecord,
    bootstrap_medians,
    interval,
)
from medusa_trt.calibration.report.results import (
    HeadsSection,
    LatencyPoint,
    LatencySection,
    Origin,
    TreeSection,
)
from medusa_trt.calibration.trees.choice import Prediction, TreeChoice, choose_tree
from medusa_trt.calibration.trees.head_accuracy import (
    head_counts,
    joint_and_independent,
    top_k_accuracies,
)
from medusa_trt.calibration.trees.head_ranks import RankRecord, mean_context, table_from_records
from medusa_trt.calibration.trees.replay import mean_accept_length, replay
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.tree_configs import MedusaTree


def heads_section(
    bundle: Bundle,
    records: Iterable[RankRecord],
    settings: ReplySettings,
    num_prompts: int | None,
    origin: Origin,
) -> HeadsSection:
    """The heads' accuracies on all recorded replies to these settings.

    Raises:
        CalibrationError: there are none.
    """
    own = [record for record in records if record.settings == settings]
    if not own:
        raise CalibrationError("no reply was recorded: run medusa-trt calibrate heads again")
    table = table_from_records(own, bundle.manifest.heads.num_heads)
    joint, independent = joint_and_independent(table.ranks)
    steps = replay(bundle.tree, table).steps
    return HeadsSection(
        origin=origin,
        settings=settings,
        num_prompts=num_prompts,
        num_replies=len(own),
        num_tokens=sum(len(record.token_ids) for record in own),
        counts=head_counts(table.ranks).tolist(),
        top_k_accuracies=top_k_accuracies(table.ranks, bundle.manifest.heads.top_k).tolist(),
        joint=joint,
        independent=independent,
        tree=bundle.tree.name,
        accept_length=mean_accept_length(table, steps),
    )


def latency_section(
    records: Iterable[LatencyRecord],
    machine: str,
    threads: int | None,
    options: LatencyOptions,
    origin: Origin,
) -> LatencySection:
    """Step times of this machine, number of threads and batch size.

    Raises:
        CalibrationError: there are none.
    """
    by_point: dict[tuple[int, int], list[LatencyRecord]] = {}
    for record in records_of(records, machine, threads, options.batch_size):
        by_point.setdefault((record.context, record.num_nodes), []).append(record)
    if not by_point:
        raise CalibrationError("no step was measured: run medusa-trt calibrate latency again")
    points = []
    for (context, num_nodes), own in sorted(by_point.items()):
        step_ms = [record.step_ms for record in own]
        points.append(
            LatencyPoint(
                context=context,
                num_nodes=num_nodes,
                num_samples=len(own),
                step_ms=interval(float(np.median(step_ms)), bootstrap_medians(step_ms)),
                engine_ms=float(np.median([record.engine_ms for record in own])),
                host_ms=float(np.median([r.step_ms - r.engine_ms for r in own])),
            )
        )
    return LatencySection(origin=origin, options=options, threads=threads, points=points)


def records_of(
    records: Iterable[LatencyRecord], machine: str, threads: int | None, batch_size: int
) -> list[LatencyRecord]:
    """The records of one machine, number of threads and batch size."""
    kind = (machine, threads, batch_size)
    return [r for r in records if (r.machine, r.threads, r.batch_size) == kind]


def tree_section(
    bundle: Bundle,
    ranks: Sequence[RankRecord],
    latencies: Sequence[LatencyRecord],
    settings: ReplySettings,
    threads: int | None,
    options: TreeOptions,
    origin: Origin,
) -> TreeSection:
    """Searches the best tree.

    Args:
        bundle: the bundle.
        ranks: recorded replies, of which those to these settings count.
        latencies: step times of this machine, number of threads and batch size.
        settings: of the replies.
        threads: for one step.
        options: what for. Without a context it is the replies' mean, within what was measured.
        origin: of the section.

    Raises:
        CalibrationError: too little was recorded.
    """
    own = [record for record in ranks if record.settings == settings]
    heads = bundle.manifest.heads
    if not own:
        raise CalibrationError("no reply was recorded: run medusa-trt calibrate heads again")
    context = options.context
    if context is None:
        contexts = [record.context for record in latencies]
        context = min(max(mean_context(own), min(contexts)), max(contexts)) if contexts else 1
    choice = choose_tree(
        table_from_records(own, heads.num_heads),
        LatencyCurve.from_records(latencies),
        num_heads=heads.num_heads,
        top_k=heads.top_k,
        context=context,
        own_tree=bundle.tree,
        options=options,
    )
    return TreeSection(
        origin=origin,
        options=options,
        context=context,
        threads=threads,
        settings=settings,
        num_replies=len(own),
        choice=choice,
        previous_tree=bundle.tree.medusa_choices,
        written=False,
        advice=advice_text(choice, options),
    )


def chosen_tree(choice: TreeChoice) -> MedusaTree:
    """The chosen tree, by the name that the bundle will show."""
    chosen = choice.chosen
    is_named = chosen == choice.plain or chosen in choice.fixed
    name = chosen.method if is_named else f"calibrated-{chosen.num_nodes}"
    return MedusaTree.from_choices(chosen.medusa_choices, name=name)


def advice_text(choice: TreeChoice, options: TreeOptions) -> str:
    """What to do, in a sentence or two."""
    best = choice.best
    range_ = f"{best.speedup.median:.2f} times (95 %: {best.speedup.low:.2f} to "
    range_ += f"{best.speedup.high:.2f})"
    if choice.chosen == choice.plain:
        text = (
            f"Plain decoding is recommended: the best tree, {_described(best)}, is predicted to "
            f"run at {range_} its speed, and at least {options.min_speedup:g} is asked for."
        )
    else:
        text = f"The best tree, {_described(best)}, is predicted to run at {range_} the speed of "
        text += "plain decoding."
    if choice.untried is not None:
        size = choice.untried.num_nodes
        text += (
            f" By interpolation {size} nodes might be faster: medusa-trt calibrate latency "
            f"--sizes {size} measures it."
        )
    return text


def _described(prediction: Prediction) -> str:
    return (
        f"{prediction.num_nodes} nodes and depth {prediction.max_depth}, "
        f"{prediction.accept_length:.2f} tokens in {prediction.step_ms:.1f} ms"
    )
