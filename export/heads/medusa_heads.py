"""Medusa heads in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from medusa_trt.errors import HeadsError
from medusa_trt.export.weights.lazy_tensor import LazyTensor


@dataclass(frozen=True, slots=True)
class Linear:
    """An affine map: `weight` (out, in), `bias` (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class MedusaHead:
    """One head.

    Attributes:
        blocks: residual blocks `x + SiLU(W x + b)` in order (paper, section 2.1.1).
        projection: an optional residual map without activation, `x + W x + b`, after the blocks.
        unembedding: (draft_vocab, hidden), or None to share the backbone's.
        root_map: an optional residual map before the blocks, `x + W [x, e] + b` with W (hidden,
            2 · hidden), where e is the backbone's input embedding of the tree's root, the token
            that x predicted. A head that does not see it has to guess which token that was (the
            idea is Hydra's, arXiv 2402.05109, whose heads see the drafted tokens as well).
    """

    blocks: tuple[Linear, ...]
    projection: Linear | None = None
    unembedding: torch.Tensor | None = None
    root_map: Linear | None = None

    @property
    def maps(self) -> tuple[Linear, ...]:
        """All maps but the unembedding, in the order in which they are applied."""
        ends = (self.root_map,), self.blocks, (self.projection,)
        return tuple(map_ for part in ends for map_ in part if map_ is not None)


@dataclass(frozen=True, slots=True)
class MedusaHeads:
    """All heads of a model, in one form whatever file they came from.

    Head i, counted from 0, predicts token t + 2 + i from the hidden state at t, the one whose
    unembedding predicts token t + 1.

    Attributes:
        heads: every head with the same number of blocks.
        token_map: (draft_vocab,) int64 token ids of a truncated vocabulary, or None.
        unread: matrices to be read when they are used, a tensor a head by the matrices' names
            (`root_map`, `block0`, ..., `projection`, `unembedding`), one alone for a common
            unembedding: those in `heads` have no data then. Empty where all is in memory.
    """

    heads: tuple[MedusaHead, ...]
    token_map: torch.Tensor | None = None
    unread: Mapping[str, tuple[LazyTensor, ...]] = field(default_factory=dict)

    @property
    def num_heads(self) -> int:
        """Number of heads: the tokens that they draft ahead."""
        return len(self.heads)

    @property
    def num_layers(self) -> int:
        """Residual blocks of each head."""
        return len(self.heads[0].blocks)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden state they read."""
        return int(self.heads[0].blocks[0].weight.shape[0])

    @property
    def reads_root(self) -> bool:
        """Whether they read the root token's embedding besides the hidden state."""
        return self.heads[0].root_map is not None

    @property
    def common_unembedding(self) -> torch.Tensor | None:
        """The one unembedding that all heads use and that is not the backbone's, or None."""
        first = self.heads[0].unembedding
        same = all(head.unembedding is first for head in self.heads)
        return first if same else None

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor, a common unembedding once."""
        tensors: dict[int, torch.Tensor] = {}
        for head in self.heads:
            for tensor in (*(map_.weight for map_ in head.maps), head.unembedding):
                if tensor is not None:
                    tensors[id(tensor)] = tensor
        return [tensor.numel() for tensor in tensors.values()]

    def draft_vocab_size(self, vocab_size: int) -> int:
        """Number of tokens that the heads choose from, on a backbone with `vocab_size`."""
        return vocab_size if self.token_map is None else int(self.token_map.numel())

    def check_fits(self, hidden_size: int, vocab_size: int) -> None:
        """Checks that the heads belong to a backbone of these sizes.

        Raises:
            HeadsError: a size differs, or `token_map` does not name distinct tokens.
        """
        if self.hidden_size != hidden_size:
            raise HeadsError(
                f"the heads read hidden states of size {self.hidden_size}, the backbone has "
                f"{hidden_size}: use heads trained for this model"
            )
        expected = self.draft_vocab_size(vocab_size)
        for index, head in enumerate(self.heads):
            if head.unembedding is not None and head.unembedding.shape[0] != expected:
                whose = "backbone's vocabulary" if self.token_map is None else "heads' token_map"
                raise HeadsError(
                    f"head {index} offers {head.unembedding.shape[0]} tokens, the {whose} has "
                    f"{expected}: use heads trained for this model"
                )
        token_ids = [] if self.token_map is None else self.token_map.tolist()
        if outside := [token for token in token_ids if not 0 <= token < vocab_size]:
            raise HeadsError(
                f"the heads' token_map holds id {outside[0]}, the backbone's vocabulary has "
                f"{vocab_size} tokens: use heads trained for this model"
            )
        if len(set(token_ids)) < len(token_ids):
            raise HeadsError("the heads' token_map holds an id twice: the file is damaged")
