"""The draft vocabulary, and the target tokens of each head at each reply token."""

from collections import Counter
from dataclasses import dataclass

import torch

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.rows import ReplyRows


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The tokens that heads can draft.

    Attributes:
        token_map: (draft_vocab,) int64 token ids in ascending order; None for all tokens.
        vocab_size: size of the backbone's vocabulary.
    """

    token_map: torch.Tensor | None
    vocab_size: int

    @classmethod
    def from_rows(cls, rows: ReplyRows, size: int, vocab_size: int) -> "DraftVocabulary":
        """Takes the `size` most frequent tokens of replies; among equals the smaller ids.

        Raises:
            TrainingError: the size is below 1.
        """
        if size < 1:
            raise TrainingError(f"the draft vocabulary has {size} tokens: give at least 1")
        if size >= vocab_size:
            return cls(None, vocab_size)
        counts = Counter(rows.token_ids.tolist())
        ranked = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
        return cls(torch.tensor(sorted(ranked[:size])), vocab_size)

    def make_columns(self) -> torch.Tensor:
        """Maps each token to its column in the heads' logits, or to -1: (vocab,) int64."""
        if self.token_map is None:
            return torch.arange(self.vocab_size)
        columns = torch.full((self.vocab_size,), -1)
        columns[self.token_map] = torch.arange(len(self.token_map))
        return columns


@dataclass(frozen=True, slots=True)
class Targets:
    """What K heads shall predict from N rows: a few weighted tokens each.

    Attributes:
        columns: (N, K, S) int64 columns of the tokens in the heads' logits; 0 where the weight
            is 0.
        weights: (N, K, S) float32; those of one head sum to 1 at most.
        exists: (N, K) bool, whether the reply still has the token that the head predicts.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    exists: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRule:
    """Makes targets from rows.

    Head i (from 0) at row r predicts the token of row r + 1 + i, if that row is in the same reply.
    Its target is `soft_weight` times the teacher's distribution over its most likely tokens, plus
    the rest for the token itself. Tokens outside of the draft vocabulary are left out.

    Attributes:
        num_heads: K.
        columns: (vocab,) as from `DraftVocabulary.make_columns`.
        soft_weight: 0 for the token itself only.
    """

    num_heads: int
    columns: torch.Tensor
    soft_weight: float

    def make_targets(self, rows: ReplyRows, index: torch.Tensor) -> Targets:
        """Makes the targets of the rows at `index` (N,)."""
        ahead = index[:, None] + torch.arange(1, self.num_heads + 1, device=index.device)
        inside = ahead.clamp(max=len(rows) - 1)
        is_same_reply = rows.reply_ids[inside] == rows.reply_ids[index][:, None]
        exists = (ahead < len(rows)) & is_same_reply
        tokens = rows.token_ids[inside][..., None]
        weights = torch.ones(tokens.shape, device=index.device)
        if self.soft_weight:
            assert rows.features is not None
            top_ids = rows.features.top_ids[inside].long()
            probabilities = rows.features.top_logprobs[inside].float().softmax(-1)
            tokens = torch.cat([tokens, top_ids], -1)
            weights = torch.cat(
                [weights * (1 - self.soft_weight), probabilities * self.soft_weight], -1
            )
        columns = self.columns[tokens]
        is_kept = (columns >= 0) & exists[..., None]
        return Targets(columns * is_kept, weights * is_kept, exists)
