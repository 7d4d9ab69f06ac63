"""Labelled conversations, their reply tokens as rows, and the split into training and held-out."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.shards import Features, Shard


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """One conversation of T tokens, as views into a shard.

    Attributes:
        token_ids: (T,) int32.
        turns: (T,) int32, as in `Shard`.
        features: one row for each reply token, or None.
    """

    token_ids: torch.Tensor
    turns: torch.Tensor
    features: Features | None

    def hash_prompt(self) -> int:
        """Hashes the tokens before the first reply."""
        is_reply = (self.turns > 0).int()
        end = int(is_reply.argmax()) if bool(is_reply.any()) else len(self.turns)
        return zlib.crc32(self.token_ids[:end].numpy().tobytes())


@dataclass(frozen=True, slots=True)
class ReplyRows:
    """R reply tokens, reply after reply.

    Attributes:
        token_ids: (R,) int64.
        reply_ids: (R,) int64, equal for the tokens of one reply and different between replies.
        features: what the backbone computed when it predicted each token, or None.
    """

    token_ids: torch.Tensor
    reply_ids: torch.Tensor
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def from_tokens(
        cls,
        token_ids: torch.Tensor,
        turns: torch.Tensor,
        conversation_ids: torch.Tensor,
        features: Features | None = None,
    ) -> "ReplyRows":
        """Keeps the tokens that belong to a reply.

        Args:
            token_ids: (T,) tokens of several conversations.
            turns: (T,) as in `Shard`.
            conversation_ids: (T,) the number of each token's conversation.
            features: those of the reply tokens.
        """
        is_reply = turns > 0
        ids = conversation_ids.long() * (int(turns.max()) + 1) + turns
        return cls(token_ids[is_reply].long(), ids[is_reply].long(), features)

    @classmethod
    def from_padded(
        cls, token_ids: torch.Tensor, turns: torch.Tensor, features: Features | None = None
    ) -> "ReplyRows":
        """Keeps the reply tokens of a padded batch: (B, T) tokens and their turns."""
        conversation_ids = torch.arange(len(turns), device=turns.device)[:, None].expand_as(turns)
        flat = (token_ids.reshape(-1), turns.reshape(-1), conversation_ids.reshape(-1))
        return cls.from_tokens(*flat, features)


def rows_from_conversations(conversations: Sequence[LabelledTokens]) -> ReplyRows:
    """Collects all reply tokens of several conversations."""
    parts = [c.features for c in conversations if c.features is not None]
    ids = [torch.full_like(c.turns, index) for index, c in enumerate(conversations)]
    return ReplyRows.from_tokens(
        torch.cat([c.token_ids for c in conversations]),
        torch.cat([c.turns for c in conversations]),
        torch.cat(ids),
        Features.concatenate(parts) if parts else None,
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Conversations to train on, and held-out ones to measure on."""

    train: list[LabelledTokens]
    held_out: list[LabelledTokens]

    @classmethod
    def from_shards(cls, shards: Sequence[Shard], held_out_fraction: float) -> "Split":
        """Chooses the held-out conversations by a hash of the tokens before their first reply.

        A prompt that occurs twice is therefore on one side only, and the choice depends on the
        prompts alone.

        Raises:
            TrainingError: there are fewer than two different prompts.
        """
        conversations = [c for shard in shards for c in _conversations_from_shard(shard)]
        hashes = [conversation.hash_prompt() for conversation in conversations]
        distinct = sorted(set(hashes))
        if len(distinct) < 2:
            raise TrainingError(
                f"the data has {len(distinct)} different prompts: make more, to hold some out"
            )
        num_held_out = min(len(distinct) - 1, math.ceil(held_out_fraction * len(distinct)))
        held_out = set(distinct[:num_held_out])
        return cls(
            [c for c, value in zip(conversations, hashes, strict=True) if value not in held_out],
            [c for c, value in zip(conversations, hashes, strict=True) if value in held_out],
        )


def _conversations_from_shard(shard: Shard) -> list[LabelledTokens]:
    lengths = shard.lengths.tolist()
    turns = shard.turns.split(lengths)
    num_rows = [int((part > 0).sum()) for part in turns]
    features: Sequence[Features | None] = [None] * len(lengths)
    if shard.features is not None:
        tensors = (shard.features.hidden, shard.features.top_ids, shard.features.top_logprobs)
        split = [tensor.split(num_rows) for tensor in tensors]
        features = [Features(*parts) for parts in zip(*split, strict=True)]
    return [
        LabelledTokens(*parts)
        for parts in zip(shard.token_ids.split(lengths), turns, features, strict=True)
    ]
