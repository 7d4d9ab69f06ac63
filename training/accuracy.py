"""How good heads are on held-out replies: accuracy by rank, and tokens a step with a tree."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.errors import TrainingError
from medusa_trt.tree_configs import MedusaTree

MAX_RANK = 10
"""Ranks from here on count as a miss: no tree looks so deep into a head."""

Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a set of heads achieves.

    Attributes:
        top_1, top_5, top_10: share of right tokens of each head, each over the positions that have
            a token so far ahead in the same reply.
        tree: the tree that was replayed.
        tokens_per_step: tokens of the replies over decode steps, the root included.
        num_tokens: reply tokens that it was measured on.
    """

    top_1: tuple[float, ...]
    top_5: tuple[float, ...]
    top_10: tuple[float, ...]
    tree: MedusaTree
    tokens_per_step: float
    num_tokens: int

    @classmethod
    def measured(
        cls, replies: list[Ranks], num_nodes: int, tree: MedusaTree | None = None
    ) -> "Accuracy":
        """Measures on replies.

        Args:
            replies: for each reply of n tokens, (n, K) ranks: at row r the place of token r + 1 + i
                among head i's candidates, `MAX_RANK` for a miss, -1 where there is no such token.
            num_nodes: of the tree to make, the root included; the first half of the replies makes
                it, the second half is replayed.
            tree: replay this one instead, on all replies.

        Raises:
            TrainingError: no replies.
        """
        if not replies:
            raise TrainingError("there are no held-out replies to measure on: make more data")
        ranks = np.concatenate(replies)
        half = len(replies) // 2 if tree is None else 0
        chosen = tree or best_tree(replies[:half] or replies, num_nodes)
        return cls(
            top_1=shares_below(ranks, 1),
            top_5=shares_below(ranks, 5),
            top_10=shares_below(ranks, MAX_RANK),
            tree=chosen,
            tokens_per_step=tokens_per_step(replies[half:], chosen),
            num_tokens=len(ranks),
        )

    def to_metrics(self) -> dict[str, float]:
        """Named numbers to log."""
        metrics = {"tokens_per_step": self.tokens_per_step}
        for name in ("top_1", "top_5", "top_10"):
            for head, value in enumerate(getattr(self, name), start=1):
                metrics[f"head_{head}_{name}"] = value
        return metrics


def ranks_from_logits(logits: torch.Tensor, columns: torch.Tensor, exists: torch.Tensor) -> Ranks:
    """The place of the right token among each head's candidates.

    Args:
        logits: (K, N, draft_vocab).
        columns: (N, K) of the right tokens, -1 for one that the draft vocabulary lacks.
        exists: (N, K), whether there is a right token.

    Returns:
        (N, K), see `Accuracy.measured`.
    """
    best = logits.topk(min(MAX_RANK, logits.shape[-1]), dim=-1).indices.transpose(0, 1)
    is_hit = best == columns[..., None]
    ranks = torch.where(is_hit.any(-1), is_hit.int().argmax(-1), MAX_RANK)
    return ranks.where(exists, -1).cpu().numpy().astype(np.int64)


def shares_below(ranks: Ranks, limit: int) -> tuple[float, ...]:
    """The share of each head's ranks below a limit; 0 for a head without any."""
    counts = (ranks >= 0).sum(0)
    hits = ((ranks >= 0) & (ranks < limit)).sum(0)
    return tuple((hits / np.maximum(counts, 1)).tolist())


def best_tree(replies: Iterable[Ranks], num_nodes: int) -> MedusaTree:
    """The tree of `num_nodes` nodes whose paths were right most often, counted jointly.

    A path's count never exceeds its parent's, so the most frequent paths make a tree; it is the one
    with the longest expected acceptance at a random position.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for ranks in replies:
        for row in ranks.tolist():
            for depth in range(1, len(row) + 1):
                if not 0 <= row[depth - 1] < MAX_RANK:
                    break
                counts[tuple(row[:depth])] += 1
    paths = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    return MedusaTree.from_choices(paths[: num_nodes - 1], name=f"best-{num_nodes}")


def tokens_per_step(replies: Iterable[Ranks], tree: MedusaTree) -> float:
    """Decodes replies again as greedy acceptance would: tokens over steps, the root included.

    The first token of a reply comes from the prompt and costs no step.
    """
    paths = frozenset(tree.medusa_choices)
    num_tokens = num_steps = 0
    for ranks in replies:
        rows = ranks.tolist()
        place = 0
        while place < len(rows) - 1:
            accepted = 0
            while accepted < len(rows[place]) and tuple(rows[place][: accepted + 1]) in paths:
                accepted += 1
            place += accepted + 1
            num_steps += 1
        num_tokens += max(0, len(rows) - 1)
    return num_tokens / num_steps if num_steps else 1.0
