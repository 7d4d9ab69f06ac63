"""Medusa heads in memory, and as a torch module."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

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
        """How many tokens ahead the heads draft."""
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
        if self.token_map is not None:
            _check_token_map(self.token_map.tolist(), vocab_size)


def _check_token_map(token_ids: list[int], vocab_size: int) -> None:
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise HeadsError(
                f"the heads' token_map holds id {token}, the backbone's vocabulary has "
                f"{vocab_size} tokens: use heads trained for this model"
            )
    if len(set(token_ids)) < len(token_ids):
        raise HeadsError("the heads' token_map holds an id twice: the file is damaged")


class HeadsModule(nn.Module):
    """The heads as a graph: a hidden state and the root token in, each head's best tokens out.

    All heads are evaluated together as batched products.
    """

    def __init__(
        self,
        heads: MedusaHeads,
        shared_unembedding: torch.Tensor,
        top_k: int,
        shared_bias: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
    ) -> None:
        """Stacks the heads' parameters.

        Args:
            heads: the heads.
            shared_unembedding: (vocab, hidden) of the backbone, for heads without their own; on
                the meta device where it is to be read later.
            top_k: candidates of each head.
            shared_bias: (vocab,) that the backbone adds to its logits, if it does.
            embedding: (vocab, hidden) of the backbone's input, for heads that read the root; may
                be on the meta device as well.
        """
        super().__init__()
        self.top_k = top_k
        self.num_heads, self.num_layers = heads.num_heads, heads.num_layers
        self.reads_root = heads.reads_root
        if self.reads_root:
            assert embedding is not None
            root_maps = [head.root_map for head in heads.heads]
            self._stack("root_map", [map_ for map_ in root_maps if map_ is not None])
            self.embedding = nn.Parameter(embedding, requires_grad=False)
        for layer in range(heads.num_layers):
            self._stack(f"block{layer}", [head.blocks[layer] for head in heads.heads])
        self.has_projection = heads.heads[0].projection is not None
        if self.has_projection:
            projections = [head.projection for head in heads.heads]
            self._stack("projection", [map_ for map_ in projections if map_ is not None])
        bias = None
        common = heads.common_unembedding
        self.shared = common is not None or heads.heads[0].unembedding is None
        if common is not None:
            unembedding = common
        elif self.shared:
            unembedding, bias = shared_unembedding, shared_bias
            if heads.token_map is not None:
                unembedding = unembedding[heads.token_map].float()
                bias = None if bias is None else bias[heads.token_map].contiguous()
        else:
            own = [head.unembedding for head in heads.heads if head.unembedding is not None]
            unembedding = torch.stack(own).transpose(1, 2).contiguous()
        self.unembedding = (
            nn.Parameter(unembedding, requires_grad=False)
            if unembedding.is_meta
            else nn.Buffer(unembedding, persistent=False)
        )
        self.unembedding_bias = None if bias is None else nn.Buffer(bias, persistent=False)
        self.token_map = (
            None if heads.token_map is None else nn.Buffer(heads.token_map, persistent=False)
        )

    def forward(self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The best candidates of each head.

        Args:
            hidden: (B, hidden_size) float32.
            root_ids: (B,) int64 the tokens decided from it, for heads that read the root.

        Returns:
            (B, num_heads, top_k) int64 token ids, best first.
        """
        logits = self.logits(hidden.to(self.dtype), root_ids)
        best = logits.topk(self.top_k, dim=-1).indices.transpose(0, 1)
        return best if self.token_map is None else self.token_map[best]

    @property
    def dtype(self) -> torch.dtype:
        """The type that the heads compute in."""
        return next(buffer.dtype for buffer in self.buffers() if buffer.is_floating_point())

    def logits(self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden` (B, hidden_size), `root_ids` (B,) → (num_heads, B, draft_vocab)."""
        state = hidden[None]
        if self.reads_root:
            state = state + self._affine("root_map", self._with_root(hidden, root_ids)[None])
        for layer in range(self.num_layers):
            state = state + nn.functional.silu(self._affine(f"block{layer}", state))
        if self.has_projection:
            state = state + self._affine("projection", state)
        if self.shared:
            num_heads = state.shape[0]
            # Two dimensions make one product of all heads, with the weight as the backbone has it.
            flat = nn.functional.linear(
                state.reshape(-1, state.shape[-1]), self.unembedding, self.unembedding_bias
            )
            return flat.reshape(num_heads, -1, flat.shape[-1])
        return self._unembed(state)

    def _with_root(self, hidden: torch.Tensor, root_ids: torch.Tensor | None) -> torch.Tensor:
        """(B, 2 · hidden_size)."""
        assert root_ids is not None
        root = nn.functional.embedding(root_ids, self.embedding)
        return torch.cat([hidden, root.to(hidden.dtype)], -1)

    def _unembed(self, state: torch.Tensor) -> torch.Tensor:
        """(num_heads, B, hidden_size) by each head's own unembedding."""
        return torch.matmul(state, self.unembedding)

    def _stack(self, name: str, maps: list[Linear]) -> None:
        """Registers (num_heads, in, out) weights and (num_heads, 1, out) biases."""
        weight = torch.stack([map_.weight.T for map_ in maps])
        biases = [
            torch.zeros(len(map_.weight)) if map_.bias is None else map_.bias for map_ in maps
        ]
        self._register(f"{name}_weight", weight)
        self._register(f"{name}_bias", torch.stack(biases)[:, None])

    def _register(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta:  # a parameter, whose data are read later
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def _affine(self, name: str, state: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = getattr(self, f"{name}_weight")
        bias: torch.Tensor = getattr(self, f"{name}_bias")
        return torch.matmul(state, weight) + bias


def embedding_of(model: PreTrainedModel) -> torch.Tensor:
    """(vocab, hidden) weight that turns tokens to vectors; without a gradient."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()
