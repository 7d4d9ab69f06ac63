"""The report's section on the search for a tree."""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_trt.calibration.latency.curve import LatencyCurve, LatencyRecord
from medusa_trt.calibration.options import ReplySettings, TreeOptions
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.trees.choice import Prediction, TreeChoice, choose_tree
from medusa_trt.calibration.trees.head_ranks import (
    RankRecord,
    compute_mean_context,
    table_from_records,
)
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSection:
    """The search for a tree. `written` says whether the chosen tree is now the bundle's."""

    origin: Origin
    options: TreeOptions
    context: int
    threads: int | None
    settings: ReplySettings
    num_replies: int
    choice: TreeChoice
    previous_tree: tuple[tuple[int, ...], ...]
    written: bool
    advice: str

    @classmethod
    def from_records(
        cls,
        bundle: Bundle,
        ranks: Sequence[RankRecord],
        latencies: Sequence[LatencyRecord],
        settings: ReplySettings,
        threads: int | None,
        options: TreeOptions,
        origin: Origin,
    ) -> "TreeSection":
        """Searches the best tree.

        The ranks were recorded with these settings. The latencies are of one machine, number of
        threads and batch size. The default context is the replies' mean, within the measured range.

        Raises:
            CalibrationError: too little was recorded.
        """
        if not ranks:
            raise CalibrationError("no reply was recorded: run medusa-trt calibrate heads again")
        context = options.context
        if context is None:
            contexts = [record.context for record in latencies]
            mean = compute_mean_context(ranks)
            context = min(max(mean, min(contexts)), max(contexts)) if contexts else 1
        heads = bundle.manifest.require_heads("a search for a tree")
        choice = choose_tree(
            table_from_records(ranks, heads.num_heads),
            LatencyCurve.from_records(latencies),
            num_heads=heads.num_heads,
            top_k=heads.top_k,
            context=context,
            bundle_tree=bundle.tree,
            options=options,
        )
        return cls(
            origin=origin,
            options=options,
            context=context,
            threads=threads,
            settings=settings,
            num_replies=len(ranks),
            choice=choice,
            previous_tree=bundle.tree.medusa_choices,
            written=False,
            advice=advice_from_choice(choice, options),
        )


def advice_from_choice(choice: TreeChoice, options: TreeOptions) -> str:
    """Says in a sentence or two what the search found."""
    best = choice.best
    speedup = f"{best.speedup.median:.2f} times (95 %: {best.speedup.low:.2f} to "
    speedup += f"{best.speedup.high:.2f})"
    if choice.chosen == choice.plain:
        text = (
            f"Plain decoding is recommended: the best tree, {_describe(best)}, is predicted to "
            f"run at {speedup} its speed, below the required {options.min_speedup:g}."
        )
    else:
        text = f"The best tree, {_describe(best)}, is predicted to run at {speedup} the speed of "
        text += "plain decoding."
    if choice.untried is not None:
        size = choice.untried.num_nodes
        text += (
            f" By interpolation {size} nodes might be faster: medusa-trt calibrate latency "
            f"--sizes {size} measures it."
        )
    return text


def _describe(prediction: Prediction) -> str:
    return (
        f"{prediction.num_nodes} nodes and depth {prediction.max_depth}, "
        f"{prediction.accept_length:.2f} tokens in {prediction.step_ms:.1f} ms"
    )
