"""Replays decoding on recorded ranks: what any tree would have accepted, without the model.

What a step accepts depends only on the ranks of the true tokens among the heads' candidates. So
the ranks of a reply give the exact number of steps that any tree takes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medusa_trt.tree_configs import MedusaTree

ABSENT = -1
"""Rank of a true token that is not among the head's candidates."""

UNKNOWN = -2
"""Rank beyond the reply's end, where there is no true token: neither a hit nor a miss."""


def ranks_from_drafts(
    drafts: Iterable[NDArray[np.int64]], token_ids: Sequence[int], num_heads: int
) -> NDArray[np.int16]:
    """Finds the ranks of a reply's tokens among the heads' candidates.

    Args:
        drafts: (num_heads, top_k) candidates for each token of the reply but the last, the token
            being the root. Head i's candidates are for the token i + 1 places after the root.
        token_ids: the reply's n tokens.
        num_heads: number of heads, for a reply without drafts.

    Returns:
        (n - 1, num_heads) int16: a rank from 0, `ABSENT`, or `UNKNOWN` beyond the reply's end.
    """
    ranks = np.full((max(0, len(token_ids) - 1), num_heads), UNKNOWN, np.int16)
    for root, candidates in zip(range(len(ranks)), drafts, strict=True):
        for head, token in enumerate(token_ids[root + 1 : root + 1 + num_heads]):
            places = np.flatnonzero(candidates[head] == token)
            ranks[root, head] = places[0] if len(places) else ABSENT
    return ranks


@dataclass(frozen=True)
class RankTable:
    """Ranks of R replies with P rows in all.

    Attributes:
        ranks: (P, num_heads) int16, the rows of `ranks_from_drafts` of one reply after the other.
        ends: (R,) int64, the end of each reply's rows.
    """

    ranks: NDArray[np.int16]
    ends: NDArray[np.int64]

    @classmethod
    def from_replies(cls, replies: Sequence[NDArray[np.int16]]) -> "RankTable":
        """Joins the (n - 1, num_heads) ranks of one or more replies."""
        return cls(np.concatenate(replies), np.cumsum([len(ranks) for ranks in replies]))

    @property
    def num_replies(self) -> int:
        """Number of replies, R."""
        return len(self.ends)

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return int(self.ranks.shape[1])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows of each reply, (R,): its tokens after the first."""
        return np.diff(self.ends, prepend=0)

    def select(self, replies: Sequence[int]) -> "RankTable":
        """Makes a table of some of the replies."""
        starts = self.ends - self.lengths
        return self.from_replies([self.ranks[starts[i] : self.ends[i]] for i in replies])


def count_accepted_drafts(tree: MedusaTree, ranks: NDArray[np.int16]) -> NDArray[np.int64]:
    """Number of drafts (P,) that a step accepts after each root.

    Args:
        tree: at most as deep as there are heads.
        ranks: (P, num_heads), as in `RankTable`.
    """
    # The last column stands for all ranks without a child.
    child_of = np.full((tree.num_nodes, tree.top_k + 1), -1, np.int64)
    index_of = {node: index for index, node in enumerate(((), *tree.medusa_choices))}
    for node, index in index_of.items():
        if node:
            child_of[index_of[node[:-1]], node[-1]] = index
    depths = np.zeros(len(ranks), np.int64)
    rows, nodes = np.arange(len(ranks)), np.zeros(len(ranks), np.int64)
    for depth in range(tree.max_depth):
        rank = ranks[rows, depth].astype(np.int64)
        rank[(rank < 0) | (rank >= tree.top_k)] = tree.top_k
        children = child_of[nodes, rank]
        rows, nodes = rows[children >= 0], children[children >= 0]
        depths[rows] += 1
    return depths


def replay(tree: MedusaTree, table: RankTable) -> NDArray[np.int64]:
    """Decodes every reply with a tree; returns its verify steps after the first token, (R,).

    Tokens that the last step adds beyond the reply's end are dropped, as the runtime does.
    """
    advances: list[int] = (count_accepted_drafts(tree, table.ranks) + 1).tolist()
    steps = np.zeros(table.num_replies, np.int64)
    start = 0
    for reply, end in enumerate(table.ends.tolist()):
        while start < end:
            steps[reply] += 1
            start += advances[start]
        start = end
    return steps


def mean_accept_length(table: RankTable, steps: NDArray[np.int64]) -> float:
    """Tokens that a step adds, over all replies; 1 for plain decoding."""
    num_steps = int(steps.sum())
    return int(table.lengths.sum()) / num_steps if num_steps else 1.0
