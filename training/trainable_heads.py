"""Medusa heads as a torch module with trainable parameters."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.export.heads.medusa_heads import Linear, MedusaHead, MedusaHeads
from medusa_trt.export.weights.tied_weights import get_embeddings
from medusa_trt.training.data.targets import DraftVocabulary
from medusa_trt.training.options import HeadsShape


class _Head(nn.Module):
    """The layers of a `MedusaHead`, in the same order.

    All maps start at zero, so that a new head predicts what the backbone predicts (paper, section
    2.2).
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
        for block in self.list_linear_blocks():
            hidden = hidden + nn.functional.silu(block(hidden))
        return hidden if self.projection is None else hidden + self.projection(hidden)

    def list_linear_blocks(self) -> list[nn.Linear]:
        """The blocks with the type that mypy needs."""
        return [block for block in self.blocks if isinstance(block, nn.Linear)]


class TrainableHeads(nn.Module):
    """All heads of a model; its state holds the heads' parameters and nothing of the backbone."""

    def __init__(
        self,
        shape: HeadsShape,
        vocabulary: DraftVocabulary,
        unembedding: torch.Tensor,
        embedding: torch.Tensor | None = None,
    ) -> None:
        """Creates untrained heads.

        Args:
            shape: number of heads and the kinds of their layers.
            vocabulary: the tokens that they can draft.
            unembedding: (vocab, hidden) of the backbone; logits are computed in its dtype.
            embedding: (vocab, hidden) input embedding of the backbone, needed for a root map.
        """
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        unembedding = unembedding.detach()
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
            self._root_scale = _find_unit_scale(embedding)
            scaled = embedding.detach() * self._root_scale
        self.root_embedding: torch.Tensor | None
        self.register_buffer("root_embedding", scaled, persistent=False)

    @classmethod
    def from_heads(cls, heads: MedusaHeads, model: PreTrainedModel) -> "TrainableHeads":
        """Copies existing heads onto the device of their backbone.

        Raises:
            HeadsError: the heads do not fit the backbone.
        """
        embedding, unembedding = get_embeddings(model)
        heads.check_fits(unembedding.shape[1], unembedding.shape[0])
        vocabulary = DraftVocabulary(heads.token_map, len(unembedding))
        trainable = cls(shape_from_heads(heads), vocabulary, unembedding, embedding)
        trainable.load_heads(heads)
        return trainable.to(model.device)

    def join_inputs(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """Joins `hidden` (N, hidden) with the embeddings of `root_ids` (N,), if heads read them."""
        if self.root_embedding is None:
            return hidden
        root = nn.functional.embedding(root_ids, self.root_embedding)
        return torch.cat([hidden, root.to(hidden.dtype)], -1)

    def forward(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """Computes the input of each head's unembedding.

        Args:
            hidden: (N, hidden).
            root_ids: (N,) the token that each hidden state predicted.

        Returns:
            (K, N, hidden).
        """
        inputs = self.join_inputs(hidden, root_ids)
        return torch.stack([head(hidden, inputs) for head in self.heads])

    def get_unembeddings(self) -> list[torch.Tensor]:
        """(draft_vocab, hidden) unembedding of each head, in the dtype of the backbone's."""
        if self.shape.has_own_unembedding:
            dtype = self.shared_unembedding.dtype
            return [weight.to(dtype) for weight in self.own_unembeddings]
        return [self.shared_unembedding] * self.shape.num_heads

    def compute_logits(self, hidden: torch.Tensor, root_ids: torch.Tensor) -> torch.Tensor:
        """Computes (K, N, draft_vocab) logits without gradients; arguments as in `forward`."""
        with torch.inference_mode():
            pairs = zip(self(hidden, root_ids), self.get_unembeddings(), strict=True)
            return torch.stack([state.to(weight.dtype) @ weight.T for state, weight in pairs])

    def set_linear_maps(self, maps: list[Linear]) -> None:
        """Sets the root map of each head, or its projection if it has no root map."""
        for head, map_ in zip(self._list_heads(), maps, strict=True):
            module = head.root_map or head.projection
            assert module is not None
            _copy_map(module, map_)

    def to_heads(self) -> MedusaHeads:
        """Copies the parameters into the form that the export reads."""

        def linear(module: nn.Linear) -> Linear:
            return Linear(module.weight.detach().cpu().clone(), module.bias.detach().cpu().clone())

        heads = tuple(
            MedusaHead(
                tuple(map(linear, head.list_linear_blocks())),
                None if head.projection is None else linear(head.projection),
                self.own_unembeddings[index].detach().cpu().clone()
                if self.shape.has_own_unembedding
                else None,
                None
                if head.root_map is None
                else _scale_root(linear(head.root_map), self._root_scale),
            )
            for index, head in enumerate(self._list_heads())
        )
        return MedusaHeads(heads, self.vocabulary.token_map)

    def load_heads(self, heads: MedusaHeads) -> None:
        """Copies the parameters of heads of the same shape."""
        assert shape_from_heads(heads) == self.shape
        for index, (module, head) in enumerate(zip(self._list_heads(), heads.heads, strict=True)):
            for layer, map_ in zip(module.list_linear_blocks(), head.blocks, strict=True):
                _copy_map(layer, map_)
            if module.projection is not None and head.projection is not None:
                _copy_map(module.projection, head.projection)
            if module.root_map is not None and head.root_map is not None:
                _copy_map(module.root_map, _scale_root(head.root_map, 1 / self._root_scale))
            if head.unembedding is not None:
                with torch.no_grad():
                    self.own_unembeddings[index].copy_(head.unembedding)

    def _list_heads(self) -> list[_Head]:
        return [head for head in self.heads if isinstance(head, _Head)]


def _scale_root(root_map: Linear, scale: float) -> Linear:
    """Adapts a root map to embeddings that are `scale` times smaller."""
    state, root = root_map.weight.chunk(2, dim=1)
    return Linear(torch.cat([state, root * scale], 1), root_map.bias)


def _find_unit_scale(embedding: torch.Tensor) -> float:
    """A power of two that brings embeddings to a root mean square near 1.

    Embeddings are often much smaller than hidden states. One learning rate for both would be too
    slow for the half of the map that reads the embedding.
    """
    size = float(embedding.detach().float().square().mean().sqrt())
    return float(2.0 ** round(-math.log2(size))) if size > 0 else 1.0


def _copy_map(layer: nn.Linear, map_: Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(map_.weight)
        layer.bias.zero_()
        if map_.bias is not None:
            layer.bias.copy_(map_.bias)


def shape_from_heads(heads: MedusaHeads) -> HeadsShape:
    """Reads the shape of existing heads."""
    return HeadsShape(
        num_heads=heads.num_heads,
        num_layers=heads.num_layers,
        has_root_map=heads.reads_root,
        has_projection=heads.heads[0].projection is not None,
        has_own_unembedding=heads.heads[0].unembedding is not None,
    )
