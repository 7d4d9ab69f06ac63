"""Grows the trees that accept most: nodes are added in the order of their probability.

A step accepts one more token for every node whose whole path is right, so a tree's expected
acceptance length is 1 + the sum of its paths' probabilities (paper, section 2.3.3). A path is never
more likely than its beginning. The N - 1 most likely paths therefore form a tree, and no tree of N
nodes has a larger sum. So the paper's greedy construction is optimal for every size, by measured
frequencies as well as by products of the heads' accuracies. A test compares it with a dynamic
program over sizes and depths (`tests/support/reference/tree_program.py`).
"""

import heapq
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from medusa_trt.tree_configs import MedusaTree

Node = tuple[int, ...]


def grow(accuracies: Sequence[Sequence[float]], max_nodes: int) -> list[Node]:
    """Lists the most likely paths of independent heads, best first. Every beginning is a tree.

    Args:
        accuracies: (num_heads, top_k) probability that head i's candidate of rank k is right.
        max_nodes: largest number of nodes, counting the root, which is not listed.
    """
    order: list[Node] = []
    frontier: list[tuple[float, int, Node]] = [(-1.0, 0, ())]
    while frontier and len(order) < max_nodes:
        weight, depth, node = heapq.heappop(frontier)
        order.append(node)
        for rank, probability in enumerate(accuracies[depth] if depth < len(accuracies) else ()):
            if probability > 0:
                # The depth puts the shorter of equally likely paths first: parents before children.
                heapq.heappush(frontier, (weight * probability, depth + 1, (*node, rank)))
    return order[1:]


def find_most_frequent_paths(ranks: NDArray[np.int16], max_nodes: int) -> list[Node]:
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


def make_typical_trees(num_heads: int, top_k: int, sizes: Collection[int]) -> dict[int, MedusaTree]:
    """Makes a tree of each size, as good heads would have it.

    They serve to measure step times, which hardly depend on the shape of a tree.
    """
    accuracies = 0.6 * np.outer(0.8 ** np.arange(num_heads), 0.5 ** np.arange(top_k))
    order = grow(accuracies.tolist(), max(sizes))
    return {
        size: MedusaTree.from_choices(order[: size - 1], name=f"typical-{size}") for size in sizes
    }
