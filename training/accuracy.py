"""Accuracy of heads on held-out replies: by rank, and as tokens per step with a tree."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.calibration.trees.growth import find_most_frequent_paths
from medusa_trt.calibration.trees.head_accuracy import compute_top_k_accuracies
from medusa_trt.calibration.trees.replay import (
    ABSENT,
    UNKNOWN,
    RankTable,
    mean_accept_length,
    replay,
)
from medusa_trt.errors import TrainingError
from medusa_trt.tree_configs import MedusaTree

NUM_CANDIDATES = 10
"""Candidates of each head that are looked at: no tree looks deeper into a head."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of a set of heads.

    Attributes:
        top_1, top_5, top_10: for each head, the share of positions whose true token is among that
            many of its candidates. Positions without a token so far ahead are not counted.
        tree: the tree that was replayed.
        tokens_per_step: mean acceptance length: tokens of the replies over decode steps, the root
            included.
        num_tokens: reply tokens that were measured.
    """

    top_1: tuple[float, ...]
    top_5: tuple[float, ...]
    top_10: tuple[float, ...]
    tree: MedusaTree
    tokens_per_step: float
    num_tokens: int

    @classmethod
    def from_ranks(
        cls, replies: list[NDArray[np.int16]], num_nodes: int, tree: MedusaTree | None = None
    ) -> "Accuracy":
        """Measures on replies.

        Args:
            replies: for each reply of n tokens, (n - 1, num_heads) ranks, as in `RankTable`.
            num_nodes: nodes of the tree to make, the root included. The first half of the replies
                makes the tree, the second half is replayed.
            tree: replay this one instead, on all replies.

        Raises:
            TrainingError: there are no replies.
        """
        if not replies:
            raise TrainingError("there are no held-out replies to measure on: make more data")
        ranks = np.concatenate(replies)
        half = len(replies) // 2 if tree is None else 0
        if tree is None:
            paths = find_most_frequent_paths(np.concatenate(replies[:half] or replies), num_nodes)
            tree = MedusaTree.from_choices(paths, name=f"best-{num_nodes}")
        replayed = RankTable.from_replies(replies[half:])
        accuracies = compute_top_k_accuracies(ranks, NUM_CANDIDATES).tolist()
        return cls(
            top_1=tuple(shares[0] for shares in accuracies),
            top_5=tuple(shares[4] for shares in accuracies),
            top_10=tuple(shares[9] for shares in accuracies),
            tree=tree,
            tokens_per_step=mean_accept_length(replayed, replay(tree, replayed)),
            num_tokens=len(ranks) + len(replies),
        )

    def to_metrics(self) -> dict[str, float]:
        """Names the figures for the log."""
        metrics = {"tokens_per_step": self.tokens_per_step}
        for name in ("top_1", "top_5", "top_10"):
            for head, value in enumerate(getattr(self, name), start=1):
                metrics[f"head_{head}_{name}"] = value
        return metrics


def ranks_from_logits(
    logits: torch.Tensor, columns: torch.Tensor, exists: torch.Tensor
) -> NDArray[np.int16]:
    """The rank of the right token among each head's candidates.

    Args:
        logits: (num_heads, N, draft_vocab).
        columns: (N, num_heads) columns of the right tokens in the logits, -1 for a token that the
            draft vocabulary lacks.
        exists: (N, num_heads), whether there is a right token.

    Returns:
        (N, num_heads) a rank from 0, `ABSENT`, or `UNKNOWN` where there is no right token.
    """
    num_candidates = min(NUM_CANDIDATES, logits.shape[-1])
    candidates = logits.topk(num_candidates, dim=-1).indices.transpose(0, 1)
    is_hit = candidates == columns[..., None]
    ranks = torch.where(is_hit.any(-1), is_hit.int().argmax(-1), ABSENT)
    return ranks.where(exists, UNKNOWN).cpu().numpy().astype(np.int16)
