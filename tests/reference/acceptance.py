"""Greedy acceptance as one would do it by hand."""

import itertools
from collections.abc import Sequence

from medusa_trt.tree_configs import MedusaTree


def accept_greedy_slowly(
    tree: MedusaTree, tokens: Sequence[int], argmax: Sequence[int]
) -> tuple[int, list[int]]:
    """Tries every node's path; returns the most tokens accepted and the nodes that end so."""
    nodes = [(), *tree.medusa_choices]
    lengths = []
    for node in nodes:
        path = [nodes.index(node[:depth]) for depth in range(len(node) + 1)]
        good = all(tokens[child] == argmax[parent] for parent, child in itertools.pairwise(path))
        lengths.append(len(path) if good else 0)
    best = max(lengths)
    return best, [index for index, length in enumerate(lengths) if length == best]
