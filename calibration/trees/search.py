"""Searches trees of every size from recorded replies, and scores them on other replies."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.growth import find_most_frequent_paths
from medusa_trt.calibration.trees.replay import RankTable, replay
from medusa_trt.errors import CalibrationError
from medusa_trt.tree_configs import MedusaTree

_NUM_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree and the steps that it takes.

    Attributes:
        method: "searched", or the tree's name.
        tree: the tree, made from all replies.
        steps: (R,) int64, verify steps of each reply. For a searched tree they are cross-validated:
            each reply is replayed with a tree that is made from other replies.
    """

    method: str
    tree: MedusaTree
    steps: NDArray[np.int64]


def search_trees(table: RankTable, sizes: Sequence[int]) -> list[Candidate]:
    """Makes the tree of the most frequent paths for each size, with its cross-validated steps.

    Args:
        table: ranks of at least two replies.
        sizes: numbers of nodes, the root included, from 2, in increasing order.

    Raises:
        CalibrationError: there are fewer than two replies.
    """
    if table.num_replies < 2:
        raise CalibrationError(
            f"{table.num_replies} recorded replies are too few to search a tree: raise "
            "--num-prompts of medusa-trt calibrate heads"
        )
    trees = _make_trees(table, sizes)
    steps = _count_held_out_steps(table, sizes)
    return [
        Candidate("searched", tree, steps[size]) for size, tree in trees.items() if size in steps
    ]


def replay_trees(table: RankTable, trees: Iterable[MedusaTree]) -> list[Candidate]:
    """Replays trees that were not made from these replies: presets, chains, the bundle's tree."""
    return [Candidate(tree.name, tree, replay(tree, table)) for tree in trees]


def _count_held_out_steps(table: RankTable, sizes: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Steps of each reply by trees that are made from the other folds.

    A size is left out if a tree of it cannot be made for every fold.
    """
    num_folds = min(_NUM_FOLDS, table.num_replies)
    folds = np.arange(table.num_replies) % num_folds
    steps = {size: np.zeros(table.num_replies, np.int64) for size in sizes}
    for fold in range(num_folds):
        held_out = np.flatnonzero(folds == fold)
        trees = _make_trees(table.select(np.flatnonzero(folds != fold).tolist()), sizes)
        test = table.select(held_out.tolist())
        steps = {size: of_size for size, of_size in steps.items() if size in trees}
        for size, of_size in steps.items():
            of_size[held_out] = replay(trees[size], test)
    return steps


def _make_trees(table: RankTable, sizes: Sequence[int]) -> dict[int, MedusaTree]:
    """Makes trees by their number of nodes; a size is left out if there are too few paths."""
    order = find_most_frequent_paths(table.ranks, max(sizes))
    return {
        size: MedusaTree.from_choices(order[: size - 1], name=f"calibrated-{size}")
        for size in sizes
        if size - 1 <= len(order)
    }
