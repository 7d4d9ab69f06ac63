"""Medusa heads with parameters to train."""

import math

import torch
from torch import nn

from medusa_trt.export.heads.medusa_heads import Linear, MedusaHead, MedusaHeads
from medusa_trt.training.data.rows import DraftVocabulary
from medusa_trt.training.options import HeadsShape


class _Head(nn.Module):
    """What `MedusaHead` describes, in the same order.

    All maps begin at zero (paper, section 2.2: a new head predicts what the backbone predicts).
    """

    def __init__(self, shape: HeadsShape, hidden_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size) for _ in range(shape.num_layers)
        )
        self.projection = nn.Linear(hidden_size, hidden_size) if shape.has_projection else None
        self.root_map = nn.Linear(2 * hidden_size, hidden_size) if shape.has_root_map else None
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        if self.root_map is not None:
            hidden = hidden + self.root_map(inputs)
        for block in self.layers():
            hidden = hidden + nn.functional.silu(block(hidden))
        return hidden if self.projection is None else hidden + self.projection(hidden)

    def layers(self) -> list[nn.Linear]:
        """The blocks' maps."""
        return [block for block in self.blocks if isinstance(block, nn.Linear)]


class TrainableHeads(nn.Module):
    """All heads. Only their own parameters are in its state."""

    def __init__(
        self,
        shape: HeadsShape,
        vocabulary: DraftVocabulary,
        unembedding: torch.Tensor,
        embedding: torch.Tensor | None = None,
    ) -> None:
        """Makes new heads.

        Args:
            shape: what they are made of.
            vocabulary: the tokens to choose from.
            unembedding: (vocab, hidden) of the backbone; products with it are in its dtype.
            embedding: (vocab, hidden) of the backbone's input, for heads with a root map.
        """
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.heads = nn.ModuleList(
            _Head(shape, unembedding.shape[1]) for _ in range(shape.num_heads)
        )
        rows = unembedding if vocabulary.token_map is None else unembedding[vocabulary.token_map]
        self.own_unembeddings = nn.ParameterList(
            rows.float().clone() for _ in range(shape.num_heads if shape.has_own_unembedding else 0)
        )
        self.shared_unembedding = nn.Buffer(rows.contiguous(), persistent=False)
        self._root_scale, scaled = 1.0, None
        if shape.has_root_map:
            assert embedding is not None
            self._root_scale = _unit_scale(embedding)
            scaled = embedding.detach() * self._root_scale
        self.root_embedding: torch.Tensor | None
        self.register_buffer("root_embedding", scaled, persistent=False)

    def inputs(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """What the first linear map reads of `hidden` (N, hidden) and `root_ids` (N,)."""
        if self.root_embedding is None:
            return hidden
        root = nn.functional.embedding(root_ids, self.root_embedding)
        return torch.cat([hidden, root.to(hidden.dtype)], -1)

    def forward(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """What each head gives its unembedding.

        Args:
            hidden: (N, hidden).
            root_ids: (N,) the token that each hidden state predicted.

        Returns:
            (K, N, hidden).
        """
        inputs = self.inputs(hidden, root_ids)
        return torch.stack([head(hidden, inputs) for head in self.heads])

    def unembeddings(self) -> list[torch.Tensor]:
        """(draft_vocab, hidden) of each head, in the dtype of the backbone's."""
        if self.shape.has_own_unembedding:
            dtype = self.shared_unembedding.dtype
            return [weight.to(dtype) for weight in self.own_unembeddings]
        return [self.shared_unembedding] * self.shape.num_heads

    def logits(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """(K, N, draft_vocab) of the arguments of `forward`, without gradients."""
        with torch.inference_mode():
            pairs = zip(self(hidden, root_ids), self.unembeddings(), strict=True)
            return torch.stack([state.to(weight.dtype) @ weight.T for state, weight in pairs])

    def set_linear_maps(self, maps: list[Linear]) -> None:
        """Sets each head's root map, or its projection if it has no root map."""
        for head, map_ in zip(self._heads(), maps, strict=True):
            module = head.root_map or head.projection
            assert module is not None
            _set(module, map_)

    def to_heads(self) -> MedusaHeads:
        """A copy in the form that the export reads."""

        def linear(module: nn.Linear) -> Linear:
            return Linear(module.weight.detach().cpu().clone(), module.bias.detach().cpu().clone())

        heads = tuple(
            MedusaHead(
                tuple(map(linear, head.layers())),
                None if head.projection is None else linear(head.projection),
                self.own_unembeddings[index].detach().cpu().clone()
                if self.shape.has_own_unembedding
                else None,
                None
                if head.root_map is None
                else self._scaled(linear(head.root_map), self._root_scale),
            )
            for index, head in enumerate(self._heads())
        )
        return MedusaHeads(heads, self.vocabulary.token_map)

    def load_heads(self, heads: MedusaHeads) -> None:
        """Takes the parameters of heads of the same shape."""
        assert shape_of(heads) == self.shape
        for index, (module, head) in enumerate(zip(self._heads(), heads.heads, strict=True)):
            for layer, map_ in zip(module.layers(), head.blocks, strict=True):
                _set(layer, map_)
            if module.projection is not None and head.projection is not None:
                _set(module.projection, head.projection)
            if module.root_map is not None and head.root_map is not None:
                _set(module.root_map, self._scaled(head.root_map, 1 / self._root_scale))
            if head.unembedding is not None:
                with torch.no_grad():
                    self.own_unembeddings[index].copy_(head.unembedding)

    @staticmethod
    def _scaled(root_map: Linear, scale: float) -> Linear:
        """A root map of embeddings that are `scale` times smaller."""
        state, root = root_map.weight.chunk(2, dim=1)
        return Linear(torch.cat([state, root * scale], 1), root_map.bias)

    def _heads(self) -> list[_Head]:
        return [head for head in self.heads if isinstance(head, _Head)]


def _unit_scale(embedding: torch.Tensor) -> float:
    """A power of two that brings embeddings to a root mean square near 1.

    Many are far below it, and hidden states are not: one learning rate would then be too slow for
    the embedding's half of a map.
    """
    size = float(embedding.detach().float().square().mean().sqrt())
    return float(2.0 ** round(-math.log2(size))) if size > 0 else 1.0


def _set(layer: nn.Linear, map_: Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(map_.weight)
        layer.bias.zero_()
        if map_.bias is not None:
            layer.bias.copy_(map_.bias)


def shape_of(heads: MedusaHeads) -> HeadsShape:
    """The shape of existing heads."""
    return HeadsShape(
        num_heads=heads.num_heads,
        num_layers=heads.num_layers,
        has_root_map=heads.reads_root,
        has_projection=heads.heads[0].projection is not None,
        has_own_unembedding=heads.heads[0].unembedding is not None,
    )


def tensors_from_heads(heads: MedusaHeads, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Named tensors in the layout that `heads_from_path` reads."""
    tensors = {}
    for index, head in enumerate(heads.heads):
        maps = {f"{layer}.linear": block for layer, block in enumerate(head.blocks)}
        if head.projection is not None:
            maps["projection"] = head.projection
        if head.root_map is not None:
            maps["root_map"] = head.root_map
        for name, map_ in maps.items():
            tensors[f"{index}.{name}.weight"] = map_.weight.to(dtype)
            if map_.bias is not None:
                tensors[f"{index}.{name}.bias"] = map_.bias.to(dtype)
        if head.unembedding is not None:
            tensors[f"{index}.{len(head.blocks)}.weight"] = head.unembedding.to(dtype)
    if heads.token_map is not None:
        tensors["token_map"] = heads.token_map
    return tensors
