"""The heads one after the other, by plain matrix products that can be quantized."""

import torch
from torch import nn

from medusa_trt.export.heads.medusa_heads import HeadsModule, Linear, MedusaHeads


class SeparateHeadsModule(HeadsModule):
    """Computes what `HeadsModule` does, with a tensor of each head's own for every product.

    A slice of a stacked tensor would stay a node of the graph, and hide a constant matrix from
    quantization.
    """

    def __init__(
        self,
        heads: MedusaHeads,
        shared_unembedding: torch.Tensor,
        top_k: int,
        shared_bias: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
    ) -> None:
        """As `HeadsModule`."""
        super().__init__(heads, shared_unembedding, top_k, shared_bias, embedding)
        if not self.shared:
            self._register_each("unembedding", list(self.unembedding))
            del self.unembedding

    def _stack(self, name: str, maps: list[Linear]) -> None:
        self._register_each(f"{name}_weight", [map_.weight.T for map_ in maps])
        biases = [
            torch.zeros(len(map_.weight)) if map_.bias is None else map_.bias for map_ in maps
        ]
        self._register_each(f"{name}_bias", biases)

    def _register_each(self, name: str, tensors: list[torch.Tensor]) -> None:
        for head, tensor in enumerate(tensors):
            self._register(f"{name}_{head}", tensor)

    def logits(self, hidden: torch.Tensor, root_ids: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden` (B, hidden_size), `root_ids` (B,) → (num_heads, B, draft_vocab)."""
        wide = self._with_root(hidden, root_ids) if self.reads_root else None
        states = [self._state(head, hidden, wide) for head in range(self.num_heads)]
        if not self.shared:
            unembeddings = [getattr(self, f"unembedding_{head}") for head in range(len(states))]
            return torch.stack([x @ each for x, each in zip(states, unembeddings, strict=True)])
        # Two dimensions make one product of all heads, with the weight as the backbone has it.
        flat = nn.functional.linear(torch.cat(states), self.unembedding, self.unembedding_bias)
        return flat.reshape(self.num_heads, -1, flat.shape[-1])

    def _state(self, head: int, state: torch.Tensor, wide: torch.Tensor | None) -> torch.Tensor:
        """What a head's unembedding reads; `wide` is the state with the root's embedding."""
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
