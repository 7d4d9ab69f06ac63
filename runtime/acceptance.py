"""Acceptance: pure functions from a verified tree to the accepted path."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medusa_trt.tree_configs import MedusaTree


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The outcome of one verify step.

    Attributes:
        nodes: the accepted path as node indices, the root first.
        bonus_token: the token that the model puts after the path's last node.
    """

    nodes: list[int]
    bonus_token: int

    @property
    def accept_length(self) -> int:
        """Tokens this step adds: the accepted drafts and the bonus token."""
        return len(self.nodes)


def accept_exact(tree: MedusaTree, tokens: Sequence[int], chosen: Sequence[int]) -> Acceptance:
    """The longest path whose every token is what was chosen after its parent.

    With each node's argmax this is greedy acceptance, with each node's draw from the target
    distribution it is lossless sampling: drafts are deterministic, so walking while the drawn
    token is a child accepts as often as any rule that keeps the distribution. Either way the
    tokens are those of decoding one at a time.

    The walk goes from node to child, so no padded path is read (the paper's code pads its paths
    with -1, which reads the last node). Of siblings with one token the first is taken.

    Args:
        tree: N nodes.
        tokens: the N nodes' tokens; siblings differ.
        chosen: the next token after each of the N nodes.
    """
    nodes = [0]
    while True:
        start, end = tree.child_ranges[nodes[-1]]
        token = chosen[nodes[-1]]
        children = tokens[start:end]
        if token not in children:
            return Acceptance(nodes, token)
        nodes.append(start + children.index(token))


def accept_typical(
    tree: MedusaTree,
    candidate_logprob: NDArray[np.float32],
    entropy: NDArray[np.float32],
    argmax: Sequence[int],
    *,
    posterior_threshold: float,
    posterior_alpha: float,
) -> Acceptance:
    """The paper's typical acceptance (Cai et al. 2024, section 2.3.1).

    A candidate x with parent distribution p is accepted when p(x) > min(ε, δ·exp(−H(p))) and its
    parent is. The longest accepted path wins, of equally long ones the most likely. The root is
    always taken, and the bonus token is greedy, as the first token of each step is in the paper.

    Args:
        tree: N nodes.
        candidate_logprob: (N,) log p(token | parent) of each node, the root's unused.
        entropy: (N,) entropy in nats of the distribution after each node.
        argmax: the greedy next token after each of the N nodes.
        posterior_threshold: ε.
        posterior_alpha: δ.
    """
    thresholds = np.minimum(posterior_threshold, posterior_alpha * np.exp(-entropy))
    refused = ~(np.exp(candidate_logprob) > thresholds[tree.parents])
    refused[0] = False
    accepted = ~(tree.attn_mask & refused).any(axis=1)
    depths = np.where(accepted, tree.position_offsets, -1)
    longest = np.flatnonzero(depths == depths.max())
    own = candidate_logprob.copy()
    own[0] = 0
    likelihoods = np.where(tree.attn_mask[longest], own, 0).sum(axis=1)
    best = int(longest[likelihoods.argmax()])
    return Acceptance(_path(tree, best), argmax[best])


def _path(tree: MedusaTree, node: int) -> list[int]:
    """The node's ancestors and itself; ancestors have smaller indices."""
    nodes: list[int] = np.flatnonzero(tree.attn_mask[node]).tolist()
    return nodes
