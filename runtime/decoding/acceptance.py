"""Acceptance: pure functions from a verified tree to the accepted path.

A path is a list of increasing node indices that begins with the root. The step adds as many tokens
as the path has nodes: its drafts, and the model's token after its last node (the bonus token).
"""

from collections.abc import Sequence
from math import exp
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class AcceptedTree(Protocol):
    """What acceptance reads of a tree: `MedusaTree` or `GrownTree`."""

    @property
    def child_ranges(self) -> Sequence[Sequence[int]]:
        """First child of each node, and the node after its last child."""
        ...

    @property
    def position_offsets(self) -> NDArray[np.int64]:
        """Depth of each node, (N,)."""
        ...


def accept_exact(tree: AcceptedTree, tokens: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Finds the longest path on which each token was chosen after its parent.

    If the chosen tokens are the argmax after each node, this is greedy acceptance. If they are
    drawn from the target distribution, it is lossless sampling: drafts are deterministic, so no
    rule that keeps the distribution accepts more. In both cases the tokens are those of plain
    decoding.

    The function goes from node to child and reads no padded paths (the paper's code pads paths with
    -1, which reads the last node). Of siblings with the same token it takes the first.

    Args:
        tree: N nodes.
        tokens: the tokens of the N nodes; siblings differ.
        chosen: the next token after each of the N nodes.
    """
    nodes = [0]
    while True:
        start, end = tree.child_ranges[nodes[-1]]
        token = chosen[nodes[-1]]
        children = tokens[start:end]
        if token not in children:
            return nodes
        nodes.append(start + children.index(token))


def accept_typical(
    tree: AcceptedTree,
    candidate_logprob: Sequence[float],
    entropy: Sequence[float],
    *,
    posterior_threshold: float,
    posterior_alpha: float,
) -> list[int]:
    """Finds a path by the paper's typical acceptance (Cai et al. 2024, section 2.3.1).

    A candidate x with parent distribution p is accepted if its parent is accepted and
    p(x) > min(ε, δ·exp(−H(p))). The result is the longest accepted path, and the most likely one of
    that length. The root is always accepted. The bonus token is the greedy one, like the first
    token of each step in the paper.

    Args:
        tree: N nodes.
        candidate_logprob: log p(token | parent) of each of the N nodes; the root's is not read.
        entropy: entropy in nats of the distribution after each of the N nodes.
        posterior_threshold: ε.
        posterior_alpha: δ.
    """
    best, best_score = [0], (1, 0.0)
    accepted = [(best, 0.0)]
    while accepted:
        path, likelihood = accepted.pop()
        start, end = tree.child_ranges[path[-1]]
        if start == end:
            continue
        threshold = min(posterior_threshold, posterior_alpha * exp(-entropy[path[-1]]))
        for node in range(start, end):
            logprob = candidate_logprob[node]
            if exp(logprob) <= threshold:
                continue
            longer = [*path, node]
            score = len(longer), likelihood + logprob
            accepted.append((longer, score[1]))
            if score > best_score:
                best, best_score = longer, score
    return best
