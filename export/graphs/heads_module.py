"""Medusa heads as torch modules, with stacked matrices or separate ones."""

import torch
from torch import nn

from medusa_trt.export.heads.medusa_heads import Linear, MedusaHeads


class HeadsModule(nn.Module):
    """Computes each head's best tokens from a hidden state and the root token.

    All heads are computed together, as batched products.
    """

    unembedding: torch.Tensor

    def __init__(
        self,
        heads: MedusaHeads,
        shared_unembedding: torch.Tensor,
        top_k: int,
        shared_bias: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
        returns_logprobs: bool = False,
    ) -> None:
        """Registers the heads' parameters.

        Args:
            heads: the heads.
            shared_unembedding: (vocab, hidden) of the backbone, for heads that share it; on the
                meta device where it is read later.
            top_k: candidates of each head.
            shared_bias: (vocab,) that the backbone adds to its logits, if it does.
            embedding: (vocab, hidden) of the backbone's input, for heads that read the root; may
                be on the meta device as well.
            returns_logprobs: whether to return the candidates' log-probabilities.
        """
        super().__init__()
        self.top_k, self.returns_logprobs = top_k, returns_logprobs
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
            matrices = [head.unembedding for head in heads.heads if head.unembedding is not None]
            unembedding = torch.stack(matrices).transpose(1, 2).contiguous()
        self._register_unembedding(unembedding)
        self.unembedding_bias = None if bias is None else nn.Buffer(bias, persistent=False)
        self.token_map = (
            None if heads.token_map is None else nn.Buffer(heads.token_map, persistent=False)
        )

    def forward(
        self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Computes the best candidates of each head.

        Args:
            hidden: (B, hidden_size) float32.
            root_ids: (B,) int64, the tokens decided from `hidden`, for heads that read the root.

        Returns:
            (B, num_heads, top_k) int64 token ids, best first; with `returns_logprobs` also their
            log-probabilities (float32) in their head's distribution.
        """
        scores = self.logits(hidden.to(self.dtype), root_ids)
        if self.returns_logprobs:
            scores = scores.float().log_softmax(-1)
        logprobs, best = (part.transpose(0, 1) for part in scores.topk(self.top_k, dim=-1))
        if self.token_map is not None:
            best = self.token_map[best]
        return (best, logprobs) if self.returns_logprobs else best

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation."""
        return next(buffer.dtype for buffer in self.buffers() if buffer.is_floating_point())

    def logits(self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Computes logits (num_heads, B, draft_vocab) from `hidden` (B, hidden_size)."""
        state = hidden[None]
        if self.reads_root:
            state = state + self._affine("root_map", self._with_root(hidden, root_ids)[None])
        for layer in range(self.num_layers):
            state = state + nn.functional.silu(self._affine(f"block{layer}", state))
        if self.has_projection:
            state = state + self._affine("projection", state)
        if self.shared:
            return self._unembed_shared(state.reshape(-1, state.shape[-1]), state.shape[0])
        return torch.matmul(state, self.unembedding)

    def _with_root(self, hidden: torch.Tensor, root_ids: torch.Tensor | None) -> torch.Tensor:
        """Joins hidden state and root embedding: (B, 2 · hidden_size)."""
        assert root_ids is not None
        root = nn.functional.embedding(root_ids, self.embedding)
        return torch.cat([hidden, root.to(hidden.dtype)], -1)

    def _unembed_shared(self, states: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Multiplies (num_heads * B, hidden_size) by the matrix that all heads share.

        With two dimensions all heads are one product, by the matrix that the backbone stores.
        """
        logits = nn.functional.linear(states, self.unembedding, self.unembedding_bias)
        return logits.reshape(num_heads, -1, logits.shape[-1])

    def _register_unembedding(self, unembedding: torch.Tensor) -> None:
        self._register("unembedding", unembedding)

    def _stack(self, name: str, maps: list[Linear]) -> None:
        """Registers (num_heads, in, out) weights and (num_heads, 1, out) biases."""
        weight = torch.stack([map_.weight.T for map_ in maps])
        self._register(f"{name}_weight", weight)
        self._register(f"{name}_bias", torch.stack(_list_biases(maps))[:, None])

    def _register(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta:  # Its data are read later, and only parameters can be traced without.
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def _affine(self, name: str, state: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = getattr(self, f"{name}_weight")
        bias: torch.Tensor = getattr(self, f"{name}_bias")
        return torch.matmul(state, weight) + bias


class SeparateHeadsModule(HeadsModule):
    """Computes the same as `HeadsModule`, with a separate matrix for each head and product.

    A slice of a stacked tensor would stay a node of the graph, and quantization would not see a
    constant matrix.
    """

    def _register_unembedding(self, unembedding: torch.Tensor) -> None:
        if self.shared:
            super()._register_unembedding(unembedding)
        else:
            self._register_each("unembedding", list(unembedding))

    def _stack(self, name: str, maps: list[Linear]) -> None:
        self._register_each(f"{name}_weight", [map_.weight.T for map_ in maps])
        self._register_each(f"{name}_bias", _list_biases(maps))

    def _register_each(self, name: str, tensors: list[torch.Tensor]) -> None:
        for head, tensor in enumerate(tensors):
            self._register(f"{name}_{head}", tensor)

    def logits(self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Computes logits (num_heads, B, draft_vocab) from `hidden` (B, hidden_size)."""
        wide = self._with_root(hidden, root_ids) if self.reads_root else None
        states = [self._state(head, hidden, wide) for head in range(self.num_heads)]
        if not self.shared:
            unembeddings = [getattr(self, f"unembedding_{head}") for head in range(len(states))]
            return torch.stack(
                [state @ matrix for state, matrix in zip(states, unembeddings, strict=True)]
            )
        return self._unembed_shared(torch.cat(states), self.num_heads)

    def _state(self, head: int, state: torch.Tensor, wide: torch.Tensor | None) -> torch.Tensor:
        """Computes a head's state; `wide` is the hidden state with the root's embedding."""
        if wide is not None:
            state = state + self._affine_of("root_map", head, wide)
        for layer in range(self.num_layers):
            state = state + nn.functional.silu(self._affine_of(f"block{layer}", head, state))
        if self.has_projection:
            state = state + self._affine_of("projection", head, state)
        return state

    def _affine_of(self, name: str, head: int, state: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = getattr(self, f"{name}_weight_{head}")
        bias: torch.Tensor = getattr(self, f"{name}_bias_{head}")
        return state @ weight + bias


def _list_biases(maps: list[Linear]) -> list[torch.Tensor]:
    """Lists the bias of each map, zeros where it has none."""
    return [torch.zeros(len(map_.weight)) if map_.bias is None else map_.bias for map_ in maps]
