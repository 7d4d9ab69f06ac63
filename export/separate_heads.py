"""The heads one after the other, by plain matrix products that can be quantized."""

import torch

from medusa_trt.export.heads import HeadsModule, Linear, MedusaHeads


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
    ) -> None:
        """As `HeadsModule`."""
        super().__init__(heads, shared_unembedding, top_k, shared_bias)
        if not self.shared:
            self._register("unembedding", list(self.unembedding))
            del self.unembedding

    def _stack(self, name: str, maps: list[Linear]) -> None:
        self._register(f"{name}_weight", [map_.weight.T for map_ in maps])
        biases = [
            torch.zeros(len(map_.weight)) if map_.bias is None else map_.bias for map_ in maps
        ]
        self._register(f"{name}_bias", biases)

    def _register(self, name: str, tensors: list[torch.Tensor]) -> None:
        for head, tensor in enumerate(tensors):
            self.register_buffer(f"{name}_{head}", tensor.contiguous(), persistent=False)

    def _affine(self, name: str, state: torch.Tensor) -> torch.Tensor:
        """`state` (1 or num_heads, B, in) → (num_heads, B, out)."""
        products = self._products(f"{name}_weight", state)
        biases = [getattr(self, f"{name}_bias_{head}") for head in range(len(products))]
        return torch.stack([product + bias for product, bias in zip(products, biases, strict=True)])

    def _unembed(self, state: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._products("unembedding", state))

    def _products(self, name: str, state: torch.Tensor) -> list[torch.Tensor]:
        """Each head's state by its matrix (in, out); a single state serves all heads."""
        weights = [getattr(self, f"{name}_{head}") for head in range(self.num_heads)]
        return [state[min(head, len(state) - 1)] @ weight for head, weight in enumerate(weights)]
