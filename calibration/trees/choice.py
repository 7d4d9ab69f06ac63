"""Chooses the tree with the most tokens per second: acceptance length over step time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.intervals import NUM_RESAMPLES, Interval
from medusa_trt.calibration.latency.curve import LatencyCurve
from medusa_trt.calibration.options import TreeOptions
from medusa_trt.calibration.trees.replay import RankTable, mean_accept_length
from medusa_trt.calibration.trees.search import Candidate, replay_trees, search_trees
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree, chain_tree, list_presets, load_tree

_PLAIN = load_tree("plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted speed of a tree on this machine.

    Attributes:
        method: "searched", or the tree's name.
        num_nodes: number of nodes, the root included.
        max_depth: number of heads that it uses.
        is_measured: true if the step time of this size was measured, false if interpolated.
        accept_length: tokens per step, on replies that the tree was not made from.
        step_ms: time of a step.
        tokens_per_s: throughput of all sequences of the batch together.
        speedup: speed over plain decoding's, with its 95 % interval.
        medusa_choices: paths of the tree.
    """

    method: str
    num_nodes: int
    max_depth: int
    is_measured: bool
    accept_length: float
    step_ms: float
    tokens_per_s: float
    speedup: Interval
    medusa_choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeChoice:
    """The outcome of a search.

    Attributes:
        plain: plain decoding.
        best: the fastest tree of a measured size.
        chosen: `best`, or `plain` if the best tree is too slow.
        untried: a tree of an unmeasured size that might be faster by 1 % or more, or None.
        by_size: the best tree of each size, smallest first.
        fixed: presets, chains and the bundle's tree, fastest first.
    """

    plain: Prediction
    best: Prediction
    chosen: Prediction
    untried: Prediction | None
    by_size: tuple[Prediction, ...]
    fixed: tuple[Prediction, ...]

    @property
    def chosen_tree(self) -> MedusaTree:
        """The chosen tree, by the name that the bundle will show."""
        is_named = self.chosen == self.plain or self.chosen in self.fixed
        name = self.chosen.method if is_named else f"calibrated-{self.chosen.num_nodes}"
        return MedusaTree.from_choices(self.chosen.medusa_choices, name=name)


def choose_tree(
    table: RankTable,
    curve: LatencyCurve,
    *,
    num_heads: int,
    top_k: int,
    context: int,
    bundle_tree: MedusaTree,
    options: TreeOptions,
) -> TreeChoice:
    """Searches all sizes and depths.

    A node costs the same at every depth, so the best tree of a size is the one that accepts most.
    A kernel's time may jump between measured sizes, so only a tree of a measured size is chosen;
    trees of other sizes are only reported.

    Args:
        table: ranks of recorded replies.
        curve: step times of this machine.
        num_heads: number of heads of the bundle.
        top_k: candidates of each head.
        context: tokens in the cache.
        bundle_tree: the bundle's present tree.
        options: batch size, smallest speedup and largest number of nodes.

    Raises:
        CalibrationError: there are too few replies, or the step times do not cover the context.
    """
    sizes = [size for size in range(2, options.max_nodes + 1) if curve.covers(size)]
    if not sizes or not curve.is_measured(1):
        raise CalibrationError(
            "step times of plain decoding and of at least one tree are needed: run medusa-trt "
            "calibrate latency"
        )
    predictor = _Predictor(table, curve, context, options.batch_size)
    plain = predictor.predict(Candidate("plain", _PLAIN, table.lengths))
    searched = [predictor.predict(candidate) for candidate in search_trees(table, sizes)]
    fixed_trees = _list_fixed_trees(num_heads, top_k, bundle_tree)
    fixed = [
        predictor.predict(candidate)
        for candidate in replay_trees(table, fixed_trees)
        if curve.covers(candidate.tree.num_nodes)
    ]
    ranked = sorted([*searched, *fixed], key=lambda prediction: -prediction.tokens_per_s)
    best = next(prediction for prediction in ranked if prediction.is_measured)
    fastest = ranked[0]
    return TreeChoice(
        plain=plain,
        best=best,
        chosen=best if best.speedup.median >= options.min_speedup else plain,
        untried=fastest if fastest.tokens_per_s > 1.01 * best.tokens_per_s else None,
        by_size=tuple(searched),
        fixed=tuple(sorted(fixed, key=lambda prediction: -prediction.tokens_per_s)),
    )


class _Predictor:
    """Turns steps into speed. Its intervals come from resampling both replies and step times."""

    def __init__(
        self, table: RankTable, curve: LatencyCurve, context: int, batch_size: int
    ) -> None:
        self._table, self._curve = table, curve
        self._context, self._batch_size = context, batch_size
        rng = np.random.default_rng(0)
        num_replies = table.num_replies
        self._drawn = rng.multinomial(
            num_replies, np.full(num_replies, 1 / num_replies), NUM_RESAMPLES
        )
        self._plain_ms = curve.step_ms(1, context)
        self._plain_resampled = curve.resample_step_ms(1, context)

    def predict(self, candidate: Candidate) -> Prediction:
        tree = candidate.tree
        length = mean_accept_length(self._table, candidate.steps)
        step_ms = self._curve.step_ms(tree.num_nodes, self._context)
        resampled = self._lengths(candidate.steps) * self._plain_resampled
        resampled /= self._curve.resample_step_ms(tree.num_nodes, self._context)
        speedup = length * self._plain_ms / step_ms
        return Prediction(
            method=candidate.method,
            num_nodes=tree.num_nodes,
            max_depth=tree.max_depth,
            is_measured=self._curve.is_measured(tree.num_nodes),
            accept_length=length,
            step_ms=step_ms,
            tokens_per_s=1e3 * self._batch_size * length / step_ms,
            speedup=Interval.from_bootstrap(speedup, resampled),
            medusa_choices=tree.medusa_choices,
        )

    def _lengths(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Acceptance lengths (NUM_RESAMPLES,) over resampled replies."""
        num_tokens = self._drawn @ self._table.lengths
        lengths: NDArray[np.float64] = num_tokens / np.maximum(1, self._drawn @ steps)
        return lengths


def _list_fixed_trees(num_heads: int, top_k: int, bundle_tree: MedusaTree) -> Sequence[MedusaTree]:
    """The presets and chains that these heads can fill, and the bundle's tree; each tree once."""
    trees = [load_tree(name) for name in list_presets()]
    trees += [chain_tree(depth) for depth in range(1, num_heads + 1)]
    fitting = [tree for tree in trees if tree.max_depth <= num_heads and tree.top_k <= top_k]
    drafting = [] if bundle_tree.num_nodes == 1 else [bundle_tree]
    by_choices = {tree.medusa_choices: tree for tree in (*drafting, *fitting)}
    return list(by_choices.values())
