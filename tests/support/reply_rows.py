"""Random reply tokens with features, and the rule that makes targets from them."""

import torch

from medusa_trt.training.data.rows import ReplyRows
from medusa_trt.training.data.shards import Features
from medusa_trt.training.data.targets import DraftVocabulary, TargetRule

VOCAB, HIDDEN = 30, 8


def random_rows(lengths: list[int], seed: int = 0) -> ReplyRows:
    """Makes replies of these lengths with random features."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    logits = torch.randn(size, VOCAB, generator=generator)
    best = logits.log_softmax(-1).topk(8)
    features = Features(
        torch.randn(size, HIDDEN, generator=generator).half(),
        best.indices.int(),
        best.values.half(),
    )
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tokens = torch.randint(VOCAB, (size,), generator=generator)
    return ReplyRows(tokens, ids, features)


def make_rule(
    num_heads: int = 3, soft_weight: float = 0.8, kept: list[int] | None = None
) -> TargetRule:
    """Makes the rule; `kept` holds the tokens of the draft vocabulary, None for all."""
    token_map = None if kept is None else torch.tensor(kept)
    columns = DraftVocabulary(token_map, VOCAB).make_columns()
    return TargetRule(num_heads=num_heads, columns=columns, soft_weight=soft_weight)
