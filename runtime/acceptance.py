"""Acceptance: pure functions from a verified tree to the accepted path.

A path is the indices of its nodes, the root's first: increasing, and as many as the tokens that
the step adds, which are its drafts and the model's token after its last node (the bonus token).
"""

from collections.abc import Sequence
from math import exp

from medusa_trt.tree_configs import MedusaTree


def accept_exact(tree: MedusaTree, tokens: Sequence[int], chosen: Sequence[int]) -> list[int]:
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
            return nodes
        nodes.append(start + children.index(token))


def accept_typical(
    tree: MedusaTree,
    candidate_logprob: Sequence[float],
    entropy: Sequence[float],
    *,
    posterior_threshold: float,
    posterior_alpha: float,
) -> list[int]:
    """The paper's typical acceptance (Cai et al. 2024, section 2.3.1).

    A candidate x with parent distribution p is accepted when p(x) > min(ε, δ·exp(−H(p))) and its
    parent is. The longest accepted path wins, of equally long ones the most likely. The root is
    always taken; the bonus token is the greedy one, as the first token of each step in the paper.

    Args:
        tree: N nodes.
        candidate_logprob: of N nodes, log p(token | parent), the root's unused.
        entropy: of N nodes, in nats, of the distribution after each.
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
