"""Greedy and typical acceptance by a search of all paths."""

import itertools
import math
from collections.abc import Sequence

from medusa_trt.tree_configs import MedusaTree


def accept_greedy_slowly(
    tree: MedusaTree, tokens: Sequence[int], argmax: Sequence[int]
) -> tuple[int, list[int]]:
    """Tries the path to every node.

    Returns:
        The largest number of accepted tokens, and the nodes whose paths reach it.
    """
    nodes = [(), *tree.medusa_choices]
    lengths = []
    for node in nodes:
        path = [nodes.index(node[:depth]) for depth in range(len(node) + 1)]
        good = all(tokens[child] == argmax[parent] for parent, child in itertools.pairwise(path))
        lengths.append(len(path) if good else 0)
    best = max(lengths)
    return best, [index for index, length in enumerate(lengths) if length == best]


def accept_typical_slowly(
    tree: MedusaTree,
    candidate_logprob: Sequence[float],
    entropy: Sequence[float],
    posterior_threshold: float,
    posterior_alpha: float,
) -> tuple[int, float, list[int]]:
    """Tries the path to every node.

    Returns:
        The best length, the log-likelihood of that path, and the nodes whose paths reach both.
    """
    nodes = [(), *tree.medusa_choices]
    scores = []
    for node in nodes:
        path = [nodes.index(node[:depth]) for depth in range(len(node) + 1)]
        likelihood = 0.0
        accepted = True
        for parent, child in itertools.pairwise(path):
            threshold = min(posterior_threshold, posterior_alpha * math.exp(-entropy[parent]))
            accepted = accepted and math.exp(candidate_logprob[child]) > threshold
            likelihood += candidate_logprob[child]
        scores.append((len(path), likelihood) if accepted else (0, 0.0))
    best = max(scores)
    return (*best, [index for index, score in enumerate(scores) if score == best])
