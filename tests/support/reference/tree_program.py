"""Best trees the slow ways: by a dynamic program over sizes and depths, and by trying all trees."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray


def expected_length(
    accuracies: Sequence[Sequence[float]] | NDArray[np.float64], paths: Iterable[tuple[int, ...]]
) -> float:
    """Tokens that a step adds if the heads are right independently: 1 + each path's probability."""
    return 1 + sum(
        math.prod(float(accuracies[head][rank]) for head, rank in enumerate(path)) for path in paths
    )


def best_length(accuracies: Sequence[Sequence[float]], num_nodes: int) -> float:
    """Largest expected accepted length of a tree with exactly this many nodes, or -inf.

    `forest(depth, rank, n)` is the best that n nodes give when they are spread over the candidates
    from `rank` on of head `depth`, each with a tree of later heads below it. The expected length
    below a node is counted as if the node were accepted, so it is weighted once on the way up.
    """
    num_heads = len(accuracies)

    @cache
    def below(depth: int, num_nodes: int) -> float:
        """The best that n nodes give below an accepted node of this depth."""
        if num_nodes == 0:
            return 0.0
        return forest(depth, 0, num_nodes) if depth < num_heads else float("-inf")

    @cache
    def forest(depth: int, rank: int, num_nodes: int) -> float:
        if num_nodes == 0:
            return 0.0
        if rank == len(accuracies[depth]):
            return float("-inf")
        accuracy = accuracies[depth][rank]
        best = forest(depth, rank + 1, num_nodes)
        for used in range(1, num_nodes + 1):
            rest = forest(depth, rank + 1, num_nodes - used)
            deeper = below(depth + 1, used - 1)
            if rest > float("-inf") and deeper > float("-inf"):
                best = max(best, accuracy * (1 + deeper) + rest)
        return best

    return 1 + below(0, num_nodes - 1)


def all_trees(num_heads: int, top_k: int, num_nodes: int) -> set[frozenset[tuple[int, ...]]]:
    """Every tree with this many nodes, the root included but not listed."""
    trees = {frozenset[tuple[int, ...]]()}
    for _ in range(num_nodes - 1):
        trees = {
            tree | {(*parent, rank)}
            for tree in trees
            for parent in {(), *tree}
            if len(parent) < num_heads
            for rank in range(top_k)
            if (*parent, rank) not in tree
        }
    return trees
