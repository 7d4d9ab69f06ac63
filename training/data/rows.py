"""Reply tokens as rows, and what each head shall predict from each row."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.shards import Features, Shard


@dataclass(frozen=True, slots=True)
class ReplyRows:
    """R reply tokens, replies one after the other.

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
    def from_conversations(
        cls,
        token_ids: torch.Tensor,
        turns: torch.Tensor,
        conversation_ids: torch.Tensor,
        features: Features | None = None,
    ) -> "ReplyRows":
        """Keeps the tokens that have a turn.

        Args:
            token_ids: (T,) tokens of several conversations.
            turns: (T,) see `Shard`.
            conversation_ids: (T,) which conversation a token belongs to.
            features: of the kept tokens.
        """
        is_reply = turns > 0
        ids = conversation_ids.long() * (int(turns.max()) + 1) + turns
        return cls(token_ids[is_reply].long(), ids[is_reply].long(), features)


@dataclass(frozen=True, slots=True)
class Targets:
    """What K heads shall predict from N rows: a few weighted tokens each.

    Attributes:
        columns: (N, K, S) int64 places in the draft vocabulary; 0 where the weight is 0.
        weights: (N, K, S) float32, together at most 1 for a head.
        exists: (N, K) bool, whether the reply goes on so far.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    exists: torch.Tensor


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The tokens that heads choose from.

    Attributes:
        token_map: (draft_vocab,) int64 token ids in ascending order; all of them if None.
        vocab_size: of the backbone.
    """

    token_map: torch.Tensor | None
    vocab_size: int

    @property
    def size(self) -> int:
        """Number of tokens to choose from."""
        return self.vocab_size if self.token_map is None else len(self.token_map)

    @classmethod
    def most_frequent(cls, rows: ReplyRows, size: int, vocab_size: int) -> "DraftVocabulary":
        """The `size` tokens most frequent in replies; among equals the smaller id.

        Raises:
            TrainingError: a size below 1.
        """
        if size < 1:
            raise TrainingError(f"the draft vocabulary has {size} tokens: give at least 1")
        if size >= vocab_size:
            return cls(None, vocab_size)
        counts = Counter(rows.token_ids.tolist())
        ranked = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
        return cls(torch.tensor(sorted(ranked[:size])), vocab_size)

    def columns(self) -> torch.Tensor:
        """(vocab,) int64: where each token lies in the draft vocabulary; -1 for nowhere."""
        if self.token_map is None:
            return torch.arange(self.vocab_size)
        columns = torch.full((self.vocab_size,), -1)
        columns[self.token_map] = torch.arange(len(self.token_map))
        return columns


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRule:
    """Turns rows into targets.

    Head i (from 0) of row r predicts the token of row r + 1 + i, if that is in the same reply.
    Its target is `soft_weight` times the teacher's distribution over its best tokens, plus the rest
    for the token itself; what the draft vocabulary lacks is left out.

    Attributes:
        num_heads: K.
        columns: see `DraftVocabulary.columns`.
        soft_weight: 0 for the token alone.
    """

    num_heads: int
    columns: torch.Tensor
    soft_weight: float

    def targets(self, rows: ReplyRows, index: torch.Tensor) -> Targets:
        """Targets of the rows at `index` (N,)."""
        ahead = index[:, None] + torch.arange(1, self.num_heads + 1, device=index.device)
        inside = ahead.clamp(max=len(rows) - 1)
        same = rows.reply_ids[inside] == rows.reply_ids[index][:, None]
        exists = (ahead < len(rows)) & same
        tokens = rows.token_ids[inside][..., None]
        weights = torch.ones(tokens.shape, device=index.device)
        if self.soft_weight:
            assert rows.features is not None
            best = rows.features.top_ids[inside].long()
            probabilities = rows.features.top_logprobs[inside].float().softmax(-1)
            tokens = torch.cat([tokens, best], -1)
            weights = torch.cat(
                [weights * (1 - self.soft_weight), probabilities * self.soft_weight], -1
            )
        columns = self.columns[tokens]
        is_kept = (columns >= 0) & exists[..., None]
        return Targets(columns * is_kept, weights * is_kept, exists)


@dataclass(frozen=True, slots=True)
class Split:
    """Conversations to train on and others to measure on, as (token_ids, turns) each."""

    train: list["LabelledTokens"]
    held_out: list["LabelledTokens"]

    @classmethod
    def from_shards(cls, shards: Sequence[Shard], held_out_fraction: float) -> "Split":
        """Holds conversations out by what comes before their first reply.

        So a prompt that occurs twice never is on both sides, and which are held out depends on
        nothing but the prompts.

        Raises:
            TrainingError: fewer than two different prompts.
        """
        conversations = [c for shard in shards for c in _conversations(shard)]
        keys = [conversation.prompt_key() for conversation in conversations]
        distinct = sorted(set(keys))
        if len(distinct) < 2:
            raise TrainingError(
                f"the data has {len(distinct)} different prompts: make more, to hold some out"
            )
        num_held_out = min(len(distinct) - 1, math.ceil(held_out_fraction * len(distinct)))
        held_out = set(distinct[:num_held_out])
        return cls(
            [c for c, key in zip(conversations, keys, strict=True) if key not in held_out],
            [c for c, key in zip(conversations, keys, strict=True) if key in held_out],
        )


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """One conversation of T tokens: views into a shard; `features` has a row a reply token."""

    token_ids: torch.Tensor
    turns: torch.Tensor
    features: Features | None

    def prompt_key(self) -> int:
        """A hash of what comes before the first reply."""
        is_reply = (self.turns > 0).int()
        end = int(is_reply.argmax()) if bool(is_reply.any()) else len(self.turns)
        return zlib.crc32(self.token_ids[:end].numpy().tobytes())


def rows_from_conversations(conversations: Sequence[LabelledTokens]) -> ReplyRows:
    """All reply tokens of several conversations."""
    parts = [c.features for c in conversations if c.features is not None]
    ids = [torch.full_like(c.turns, index) for index, c in enumerate(conversations)]
    return ReplyRows.from_conversations(
        torch.cat([c.token_ids for c in conversations]),
        torch.cat([c.turns for c in conversations]),
        torch.cat(ids),
        Features.concatenated(parts) if parts else None,
    )


def _conversations(shard: Shard) -> list[LabelledTokens]:
    lengths = shard.lengths.tolist()
    turns = shard.turns.split(lengths)
    num_rows = [int((part > 0).sum()) for part in turns]
    features: Sequence[Features | None] = [None] * len(lengths)
    if shard.features is not None:
        fields = (shard.features.hidden, shard.features.top_ids, shard.features.top_logprobs)
        split = [field.split(num_rows) for field in fields]
        features = [Features(*parts) for parts in zip(*split, strict=True)]
    return [
        LabelledTokens(*parts)
        for parts in zip(shard.token_ids.split(lengths), turns, features, strict=True)
    ]
