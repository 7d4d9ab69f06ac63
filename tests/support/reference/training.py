"""The loss of Medusa heads as plain loops over conversations, positions and heads, in float64."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cross_entropy(logits: Array, target: dict[int, float]) -> float:
    """−Σ q(x) log p(x)."""
    top = float(logits.max())
    normalizer = top + math.log(sum(math.exp(value - top) for value in logits.tolist()))
    return sum(weight * (normalizer - float(logits[token])) for token, weight in target.items())


def loss_over_positions(
    head_logits: Sequence[Sequence[Sequence[Array]]],
    token_ids: Sequence[Sequence[int]],
    turns: Sequence[Sequence[int]],
    decay: float,
) -> float:
    """Hard targets. `head_logits[k][c][p]` is what head k says at position p of conversation c.

    A position counts for head k if the model predicts there a token of a reply, and the token k + 2
    further on belongs to the same reply.
    """
    total = 0.0
    for k, of_head in enumerate(head_logits):
        losses = []
        for c, tokens in enumerate(token_ids):
            for p in range(len(tokens)):
                ahead = p + 2 + k
                if ahead >= len(tokens) or turns[c][p + 1] == 0:
                    continue
                if any(turns[c][q] != turns[c][p + 1] for q in range(p + 1, ahead + 1)):
                    continue
                losses.append(cross_entropy(of_head[c][p], {tokens[ahead]: 1.0}))
        if losses:
            total += decay**k * sum(losses) / len(losses)
    return total
