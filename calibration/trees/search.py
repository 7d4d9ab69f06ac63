"""Searches trees of every size from recorded replies, and scores them on other replies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.growth import (
    Node,
    grow,
    independent_statistics,
    joint_statistics,
)
from medusa_trt.calibration.trees.head_accuracy import rank_accuracies
from medusa_trt.calibration.trees.replay import RankTable, replay
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree

Trees = dict[int, MedusaTree]
"""Trees by their number of nodes."""

Method = Callable[[RankTable, int, Sequence[int]], Trees]
"""Makes trees from a table, the number of candidates of a head, and the wanted sizes."""

_NUM_FOLDS = 5
_NUM_REPLAYS = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree and the steps that it takes.

    Attributes:
        method: how the tree was found, or its name.
        tree: the tree, made from all replies.
        steps: (R,) int64, verify steps of each reply. For a searched tree they are cross-validated:
            each reply is replayed with a tree that the same method makes from other replies.
    """

    method: str
    tree: MedusaTree
    steps: NDArray[np.int64]


def independent_trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
    """Grows trees greedily from the heads' accuracies, as the paper does."""
    order = grow(independent_statistics(rank_accuracies(table.ranks, top_k)), max(sizes))
    return _trees_from_order(order, sizes)


def joint_trees(prior: float) -> Method:
    """Makes a method that grows trees from joint statistics; see `joint_statistics`."""

    def trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
        accuracies = rank_accuracies(table.ranks, top_k)
        return _trees_from_order(
            grow(joint_statistics(table.ranks, accuracies, prior), max(sizes)), sizes
        )

    return trees


def replayed_trees(prior: float) -> Method:
    """Makes a method that refines trees by replay.

    The tree decides which tokens become the root of a step. So the tree of each size is replayed,
    joint statistics are taken from the roots that it visits, and a new tree is grown from them.
    The tree with the fewest steps is kept.
    """

    def trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> Trees:
        grown = joint_trees(prior)(table, top_k, sizes)
        return {size: _refine(tree, table, top_k, prior) for size, tree in grown.items()}

    return trees


METHODS: dict[str, Method] = {
    "independent": independent_trees,
    "joint, prior 8": joint_trees(8.0),
    "joint, prior 64": joint_trees(64.0),
    "replayed, prior 64": replayed_trees(64.0),
}


def search_trees(table: RankTable, top_k: int, sizes: Sequence[int]) -> list[Candidate]:
    """Makes a tree by each method and of each size, with its cross-validated steps.

    Args:
        table: ranks of at least two replies.
        top_k: candidates of each head.
        sizes: numbers of nodes, the root included, from 2.

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


def replay_trees(table: RankTable, trees: Iterable[MedusaTree]) -> list[Candidate]:
    """Replays trees that were not made from these replies: presets, chains, the bundle's tree."""
    return [Candidate(tree.name, tree, replay(tree, table).steps) for tree in trees]


def _held_out_steps(
    method: Method, table: RankTable, top_k: int, sizes: Sequence[int]
) -> dict[int, NDArray[np.int64]]:
    """Steps of each reply by trees that are made from the other folds.

    A size is left out if a tree of it cannot be made for every fold.
    """
    num_folds = min(_NUM_FOLDS, table.num_replies)
    folds = np.arange(table.num_replies) % num_folds
    steps = {size: np.zeros(table.num_replies, np.int64) for size in sizes}
    for fold in range(num_folds):
        held_out = np.flatnonzero(folds == fold)
        trees = method(table.select(np.flatnonzero(folds != fold).tolist()), top_k, sizes)
        test = table.select(held_out.tolist())
        steps = {size: of_size for size, of_size in steps.items() if size in trees}
        for size, of_size in steps.items():
            of_size[held_out] = replay(trees[size], test).steps
    return steps


def _refine(tree: MedusaTree, table: RankTable, top_k: int, prior: float) -> MedusaTree:
    best, fewest = tree, replay(tree, table)
    current = fewest
    for _ in range(_NUM_REPLAYS):
        ranks = table.ranks[current.visited]
        order = grow(joint_statistics(ranks, rank_accuracies(ranks, top_k), prior), tree.num_nodes)
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
