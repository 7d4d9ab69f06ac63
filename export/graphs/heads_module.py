"""Medusa heads as a torch module, with stacked matrices or separate ones."""

from collections.abc import Sequence

import torch
from torch import nn

from medusa_trt.export.heads.medusa_heads import Linear, MedusaHeads


class HeadsModule(nn.Module):
    """Computes each head's best tokens from a hidden state and the root token.

    Stacked matrices compute all heads together, as batched products. Quantization wants separate
    ones: a slice of a stacked tensor would stay a node of the graph, and not be a constant matrix.
    """

    unembedding: torch.Tensor

    def __init__(
        self,
        heads: MedusaHeads,
        shared_unembedding: torch.Tensor,
        top_k: int,
        shared_bias: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
        *,
        returns_logprobs: bool = False,
        is_stacked: bool = True,
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
            is_stacked: whether the heads' matrices are stacked.
        """
        super().__init__()
        self.top_k, self.returns_logprobs = top_k, returns_logprobs
        self.num_heads, self.num_layers = heads.num_heads, heads.num_layers
        self.is_stacked, self.reads_root = is_stacked, heads.reads_root
        # The names of one product's parameters end like this.
        self._suffixes = [""] if is_stacked else [f"_{head}" for head in range(heads.num_heads)]
        if self.reads_root:
            assert embedding is not None
            self._register_maps("root_map", [head.root_map for head in heads.heads])
            self.embedding = nn.Parameter(embedding, requires_grad=False)
        for layer in range(heads.num_layers):
            self._register_maps(f"block{layer}", [head.blocks[layer] for head in heads.heads])
        self.has_projection = heads.heads[0].projection is not None
        if self.has_projection:
            self._register_maps("projection", [head.projection for head in heads.heads])
        bias, token_map = None, heads.token_map
        common = heads.common_unembedding
        self.shared = common is not None or heads.heads[0].unembedding is None
        if common is not None:
            self._register("unembedding", common)
        elif self.shared:
            unembedding, bias = shared_unembedding, shared_bias
            if token_map is not None:
                unembedding = unembedding[token_map].float()
                bias = None if bias is None else bias[token_map].contiguous()
            self._register("unembedding", unembedding)
        else:
            matrices = [head.unembedding.T for head in heads.heads if head.unembedding is not None]
            self._register_all("unembedding", matrices)
        self.unembedding_bias = None if bias is None else nn.Buffer(bias, persistent=False)
        self.token_map = None if token_map is None else nn.Buffer(token_map, persistent=False)

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
        wide = None
        if self.reads_root:
            assert root_ids is not None
            root = nn.functional.embedding(root_ids, self.embedding)
            wide = torch.cat([hidden, root.to(hidden.dtype)], -1)
        if self.is_stacked:
            states = [self._run("", hidden[None], None if wide is None else wide[None])]
        else:
            states = [self._run(suffix, hidden, wide) for suffix in self._suffixes]
        if self.shared:
            # With two dimensions all heads are one product, by the matrix that the backbone stores.
            rows = states[0].flatten(0, 1) if self.is_stacked else torch.cat(states)
            logits = nn.functional.linear(rows, self.unembedding, self.unembedding_bias)
            return logits.reshape(self.num_heads, -1, logits.shape[-1])
        matrices = [getattr(self, f"unembedding{suffix}") for suffix in self._suffixes]
        products = [state @ matrix for state, matrix in zip(states, matrices, strict=True)]
        return products[0] if self.is_stacked else torch.stack(products)

    def _run(self, suffix: str, state: torch.Tensor, wide: torch.Tensor | None) -> torch.Tensor:
        """Computes the state of one head, or of all; `wide` has the root's embedding too."""
        if wide is not None:
            state = state + self._apply_map("root_map", suffix, wide)
        for layer in range(self.num_layers):
            state = state + nn.functional.silu(self._apply_map(f"block{layer}", suffix, state))
        if self.has_projection:
            state = state + self._apply_map("projection", suffix, state)
        return state

    def _apply_map(self, name: str, suffix: str, state: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = getattr(self, f"{name}_weight{suffix}")
        bias: torch.Tensor = getattr(self, f"{name}_bias{suffix}")
        return state @ weight + bias

    def _register_maps(self, name: str, maps: Sequence[Linear | None]) -> None:
        """Registers weights (in, out) and biases (out,), which are zeros where a map has none."""
        whole = [map_ for map_ in maps if map_ is not None]
        biases = [torch.zeros(len(m.weight)) if m.bias is None else m.bias for m in whole]
        self._register_all(f"{name}_weight", [map_.weight.T for map_ in whole])
        self._register_all(f"{name}_bias", [b[None] for b in biases] if self.is_stacked else biases)

    def _register_all(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Registers a tensor of each head, or their stack."""
        each = [torch.stack(list(tensors))] if self.is_stacked else tensors
        for suffix, tensor in zip(self._suffixes, each, strict=True):
            self._register(f"{name}{suffix}", tensor)

    def _register(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta:  # Its data are read later, and only parameters can be traced without.
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(name, tensor.contiguous(), persistent=False)
