"""Acceptance: pure functions from a verified tree to the accepted path."""

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


def accept_greedy(
    tree: MedusaTree, tokens: NDArray[np.int64], argmax: NDArray[np.int64]
) -> Acceptance:
    """The longest path whose every token is its parent's argmax.

    Token-identical to greedy decoding one token at a time. A node is accepted when it and all
    its ancestors match, so no padded path is read (the paper's code pads its paths with -1,
    which reads the last node). Of equally deep nodes the first wins.

    Args:
        tree: N nodes.
        tokens: (N,) the nodes' tokens.
        argmax: (N,) the model's greedy next token after each node.
    """
    mismatches = tokens != argmax[tree.parents]
    mismatches[0] = False
    accepted = ~(tree.attn_mask & mismatches).any(axis=1)
    deepest = int(np.where(accepted, tree.position_offsets, -1).argmax())
    nodes: list[int] = np.flatnonzero(tree.attn_mask[deepest]).tolist()
    return Acceptance(nodes, int(argmax[deepest]))
