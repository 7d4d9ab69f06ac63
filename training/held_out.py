"""Heads measured on replies that they never saw."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from medusa_trt.training.accuracy import Accuracy, ranks_from_logits
from medusa_trt.training.data.rows import (
    LabelledTokens,
    ReplyRows,
    TargetRule,
    rows_from_conversations,
)
from medusa_trt.training.datasets import PaddedConversations
from medusa_trt.training.objectives import HeadsOnBackbone
from medusa_trt.training.trainable_heads import TrainableHeads
from medusa_trt.tree_configs import MedusaTree

_CHUNK_ROWS = 1024


def accuracy_of(
    heads: TrainableHeads,
    pieces: Iterator[tuple[torch.Tensor, ReplyRows]],
    num_nodes: int,
    tree: MedusaTree | None = None,
) -> Accuracy:
    """Measures heads.

    Args:
        heads: in any mode.
        pieces: hidden (R, hidden) with its rows; whole replies.
        num_nodes: of the tree to make and replay, the root included.
        tree: to replay instead.
    """
    replies = [ranks for piece in pieces for ranks in _ranks(heads, *piece)]
    return Accuracy.from_ranks(replies, num_nodes, tree)


def kept_pieces(conversations: list[LabelledTokens]) -> Iterator[tuple[torch.Tensor, ReplyRows]]:
    """Hidden states that the data holds."""
    for first in range(0, len(conversations), _CHUNK_ROWS // 8):
        rows = rows_from_conversations(conversations[first : first + _CHUNK_ROWS // 8])
        assert rows.features is not None
        yield rows.features.hidden, rows


def computed_pieces(
    module: HeadsOnBackbone, data: PaddedConversations, batch_size: int
) -> Iterator[tuple[torch.Tensor, ReplyRows]]:
    """Hidden states that the backbone computes."""
    for first in range(0, len(data), batch_size):
        places = list(range(first, min(first + batch_size, len(data))))
        batch = {k: v.to(module.model.device) for k, v in data.__getitems__(places).items()}
        with torch.inference_mode():
            hidden, _ = module.hidden_and_logits(**batch)
        batch_ids = torch.arange(len(places), device=hidden.device)[:, None]
        ids = batch_ids.expand_as(batch["turns"]).reshape(-1)
        yield (
            hidden,
            ReplyRows.from_conversations(
                batch["token_ids"].reshape(-1), batch["turns"].reshape(-1), ids
            ),
        )


def _ranks(
    heads: TrainableHeads, hidden: torch.Tensor, rows: ReplyRows
) -> Iterator[NDArray[np.int16]]:
    """(n - 1, num_heads) ranks of each reply of n tokens: nothing follows the last one."""
    device = next(heads.parameters()).device
    rule = TargetRule(
        num_heads=heads.shape.num_heads,
        columns=heads.vocabulary.columns().to(rows.token_ids.device),
        soft_weight=0.0,
    )
    parts = []
    for index in torch.arange(len(rows), device=rows.token_ids.device).split(_CHUNK_ROWS):
        targets = rule.targets(rows, index)
        columns = targets.columns[..., 0].where(targets.weights[..., 0] > 0, -1)
        state = hidden[index.to(hidden.device)].to(device).float()
        logits = heads.logits(state, rows.token_ids[index].to(device))
        parts.append(ranks_from_logits(logits, columns.to(device), targets.exists.to(device)))
    lengths = rows.reply_ids.unique_consecutive(return_counts=True)[1].tolist()
    replies = np.split(np.concatenate(parts), np.cumsum(lengths)[:-1])
    return (ranks[:-1] for ranks in replies)
