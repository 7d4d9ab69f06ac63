"""Trees for every size from recorded replies, and what they accept on replies not seen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.growth import Node, grow, independent, joint
from medusa_trt.calibration.trees.head_accuracy import rank_accuracies
from medusa_trt.calibration.trees.replay import RankTable, replay
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree

Trees = dict[int, MedusaTree]
"""Trees by their number of nodes."""

Method = Callable[[RankTable, int, Sequence[int]], Trees]
"""From a table, the candidates of a head and sizes to a tree of each size that can be made."""

_NUM_FOLDS = 5
_NUM_REPLAYS = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree and the steps that it takes.

    Attributes:
        method: how it was found.
        tree: made from all replies.
        steps: (R,) int64, verify steps for each reply. For a tree that was made from replies, by
            the tree that the same method makes from the other replies: an honest estimate.
    """

    method: str
    tree: MedusaTree
    steps: NDArray[np.int64]


def independent_trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
    """The paper's greedy construction on the heads' own accuracies."""
    order = grow(independent(rank_accuracies(table.ranks, top_k)), max(sizes))
    return _trees_from_order(order, sizes)


def joint_trees(prior: float) -> Method:
    """Greedy construction on joint statistics; see `tree_growth.joint`."""

    def trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
        accuracies = rank_accuracies(table.ranks, top_k)
        return _trees_from_order(grow(joint(table.ranks, accuracies, prior), max(sizes)), sizes)

    return trees


def replayed_trees(prior: float) -> Method:
    """Refinement by replay: joint statistics of the positions where the tree's steps begin.

    Which tokens are the root of a step depends on the tree: after a long accepted path the next
    token is another one. So each size's tree is replayed, the statistics are taken again from the
    roots it visits, and the tree is made anew; the one with the fewest steps is kept.
    """

    def trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
        found = joint_trees(prior)(table, top_k, sizes)
        return {size: _refined(tree, table, top_k, prior) for size, tree in found.items()}

    return trees


METHODS: dict[str, Method] = {
    "independent": independent_trees,
    "joint, prior 8": joint_trees(8.0),
    "joint, prior 64": joint_trees(64.0),
    "replayed, prior 64": replayed_trees(64.0),
}


def search(table: RankTable, top_k: int, sizes: Sequence[int]) -> list[Candidate]:
    """A tree of each method and size, with its cross-validated steps.

    Args:
        table: at least two replies.
        top_k: candidates of each head.
        sizes: numbers of nodes from 2, the root included.

    Raises:
        CalibrationError: there are fewer than two replies.
    """
    if table.num_replies < 2:
        raise CalibrationError(
            f"{table.num_replies} recorded replies are too few to search a tree: raise "
            "--num-prompts of medusa-trt calibrate heads"
        )
    candidates = []
    for name, method in METHODS.items():
        trees = method(table, top_k, sizes)
        steps = _held_out_steps(method, table, top_k, sizes)
        candidates += [
            Candidate(name, tree, steps[size]) for size, tree in trees.items() if size in steps
        ]
    return candidates


def fixed_candidates(table: RankTable, trees: Iterable[MedusaTree]) -> list[Candidate]:
    """Trees that were not made from these replies: presets, chains, the bundle's own."""
    return [Candidate(tree.name, tree, replay(tree, table).steps) for tree in trees]


def _held_out_steps(
    method: Method, table: RankTable, top_k: int, sizes: Sequence[int]
) -> dict[int, NDArray[np.int64]]:
    """Steps for each reply by trees made from the other folds, of sizes that every fold has."""
    num_folds = min(_NUM_FOLDS, table.num_replies)
    folds = np.arange(table.num_replies) % num_folds
    steps = {size: np.zeros(table.num_replies, np.int64) for size in sizes}
    for fold in range(num_folds):
        held_out = np.flatnonzero(folds == fold)
        trees = method(table.select(np.flatnonzero(folds != fold).tolist()), top_k, sizes)
        test = table.select(held_out.tolist())
        steps = {size: own for size, own in steps.items() if size in trees}
        for size, own in steps.items():
            own[held_out] = replay(trees[size], test).steps
    return steps


def _refined(tree: MedusaTree, table: RankTable, top_k: int, prior: float) -> MedusaTree:
    best, fewest = tree, replay(tree, table)
    current = fewest
    for _ in range(_NUM_REPLAYS):
        ranks = table.ranks[current.visited]
        order = grow(joint(ranks, rank_accuracies(ranks, top_k), prior), tree.num_nodes)
        if len(order) < tree.num_nodes - 1:
            break
        tree = MedusaTree.from_choices(order)
        current = replay(tree, table)
        if current.steps.sum() < fewest.steps.sum():
            best, fewest = tree, current
    return best


def _trees_from_order(order: Sequence[Node], sizes: Sequence[int]) -> Trees:
    return {
        size: MedusaTree.from_choices(order[: size - 1], name=f"calibrated-{size}")
        for size in sizes
        if size - 1 <= len(order)
    }
