"""Facts about heads in memory, and changes to their unembeddings."""

from collections.abc import Callable
from dataclasses import replace

import torch

from medusa_trt.export.heads.formats import HeadsFacts
from medusa_trt.export.heads.medusa_heads import MedusaHeads


def facts_from_heads(
    heads: MedusaHeads, vocab_size: int | None, base_model: str | None
) -> HeadsFacts:
    """Collects the facts about heads that a config states.

    Args:
        heads: the heads.
        vocab_size: the backbone's, if it is known.
        base_model: what the config calls the backbone.
    """
    first = heads.heads[0]
    if first.unembedding is None:
        draft_vocab_size = None if heads.token_map is None else int(heads.token_map.numel())
    else:
        draft_vocab_size = int(first.unembedding.shape[0])
        if heads.token_map is None:
            vocab_size = draft_vocab_size
    is_common = heads.common_unembedding is not None and heads.num_heads > 1
    return HeadsFacts(
        num_heads=heads.num_heads,
        num_layers=heads.num_layers,
        hidden_size=heads.hidden_size,
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size,
        has_biases=any(block.bias is not None for block in first.blocks),
        has_projection=first.projection is not None,
        has_root_map=heads.reads_root,
        has_token_map=heads.token_map is not None,
        unembedding="shared" if first.unembedding is None else "common" if is_common else "own",
        base_model=base_model,
    )


def replace_unembeddings(
    heads: MedusaHeads, change: Callable[[torch.Tensor], torch.Tensor]
) -> MedusaHeads:
    """Changes the unembeddings of heads; a common one stays common."""
    matrices = {id(head.unembedding): head.unembedding for head in heads.heads}
    changed = {key: change(matrix) for key, matrix in matrices.items() if matrix is not None}
    return replace(
        heads,
        heads=tuple(
            replace(head, unembedding=changed.get(id(head.unembedding))) for head in heads.heads
        ),
    )
