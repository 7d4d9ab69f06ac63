"""Grows the trees that accept most: nodes are added in the order of their probability.

A step accepts one more token for every node whose whole path is right, so a tree's expected
acceptance length is 1 + the sum of its paths' probabilities (paper, section 2.3.3). A path is never
more likely than its beginning. The N - 1 most likely paths therefore form a tree, and no tree of N
nodes has a larger sum. So the paper's greedy construction is optimal for every size, both under
independence and under joint statistics. A test compares it with a dynamic program over sizes and
depths (`tests/support/reference/tree_program.py`).
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from medusa_trt.calibration.trees.replay import UNKNOWN
from medusa_trt.tree_configs import MedusaTree

Node = tuple[int, ...]

ChildProbabilities = Callable[[Node], Sequence[float]]
"""For a path, the probability of each candidate of the next head to be right after it.

It is empty after the last head."""


def grow(child_probabilities: ChildProbabilities, max_nodes: int) -> list[Node]:
    """Lists the most likely paths, best first. Every beginning of the list is a tree.

    Args:
        child_probabilities: statistics of the heads.
        max_nodes: largest number of nodes, counting the root, which is not listed.
    """
    order: list[Node] = []
    frontier: list[tuple[float, int, Node]] = [(-1.0, 0, ())]
    while frontier and len(order) < max_nodes:
        weight, depth, node = heapq.heappop(frontier)
        order.append(node)
        for rank, probability in enumerate(child_probabilities(node)):
            if probability > 0:
                # The depth puts the shorter of equally likely paths first: parents before children.
                heapq.heappush(frontier, (weight * probability, depth + 1, (*node, rank)))
    return order[1:]


def most_frequent_paths(ranks: NDArray[np.int16], max_nodes: int) -> list[Node]:
    """Lists the paths that were right most often, best first. Every beginning of it is a tree.

    Nothing is smoothed, and a path that reaches beyond a reply's end counts as wrong.

    Args:
        ranks: (P, num_heads), as in `RankTable`.
        max_nodes: largest number of nodes, counting the root, which is not listed.
    """
    counts: Counter[Node] = Counter()
    for row in ranks.tolist():
        for depth, rank in enumerate(row):
            if rank < 0:
                break
            counts[tuple(row[: depth + 1])] += 1
    order = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    return order[: max_nodes - 1]


def independent_statistics(accuracies: NDArray[np.float64]) -> ChildProbabilities:
    """Statistics of heads that are right independently of each other, as the paper assumes.

    Args:
        accuracies: (num_heads, top_k), see `rank_accuracies`.
    """
    rows: list[list[float]] = accuracies.tolist()
    return lambda node: rows[len(node)] if len(node) < len(rows) else []


def typical_trees(num_heads: int, top_k: int, sizes: Collection[int]) -> dict[int, MedusaTree]:
    """Makes a tree of each size, as good heads would have it.

    They serve to measure step times, which hardly depend on the shape of a tree.
    """
    accuracies = 0.6 * np.outer(0.8 ** np.arange(num_heads), 0.5 ** np.arange(top_k))
    order = grow(independent_statistics(accuracies), max(sizes))
    return {
        size: MedusaTree.from_choices(order[: size - 1], name=f"typical-{size}") for size in sizes
    }


def joint_statistics(
    ranks: NDArray[np.int16], accuracies: NDArray[np.float64], prior: float
) -> ChildProbabilities:
    """Joint statistics of the heads, smoothed towards independence.

    A candidate that was right c times after a path that was seen m times has the probability
    (c + prior · p) / (m + prior), where p is the accuracy of its head at this rank. Counts decide
    after a frequent path, independence after a rare one.

    Args:
        ranks: (P, num_heads), as in `RankTable`.
        accuracies: (num_heads, top_k), see `rank_accuracies`.
        prior: number of positions that independence counts for, above 0.
    """
    num_heads, top_k = accuracies.shape
    tables: list[tuple[dict[Node, int], NDArray[np.int64]]] = []
    for depth in range(num_heads):
        tables.append(_child_counts(ranks, depth, top_k))

    def child_probabilities(node: Node) -> Sequence[float]:
        if len(node) == num_heads:
            return []
        of_head, (row_of, counts) = accuracies[len(node)], tables[len(node)]
        row = row_of.get(node)
        if row is None:
            return list(of_head.tolist())
        path_counts = counts[row]
        smoothed: list[float] = (
            (path_counts[:top_k] + prior * of_head) / (path_counts.sum() + prior)
        ).tolist()
        return smoothed

    return child_probabilities


def _child_counts(
    ranks: NDArray[np.int16], depth: int, top_k: int
) -> tuple[dict[Node, int], NDArray[np.int64]]:
    """Counts the ranks that follow each path of a length.

    Returns:
        The row of each path, and (num_paths, top_k + 1) counts, whose last column counts the
        positions where no candidate was right.
    """
    is_sample = (ranks[:, depth] != UNKNOWN) & (ranks[:, :depth] >= 0).all(axis=1)
    paths, rows = np.unique(ranks[is_sample, :depth], axis=0, return_inverse=True)
    counts = np.zeros((len(paths), top_k + 1), np.int64)
    child = ranks[is_sample, depth].astype(np.int64)
    child[(child < 0) | (child >= top_k)] = top_k
    np.add.at(counts, (rows.reshape(-1), child), 1)
    return {tuple(path): index for index, path in enumerate(paths.tolist())}, counts
