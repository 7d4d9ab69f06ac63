"""The verify graph as a torch module around a transformers model.

The model's code runs unchanged. Only its attention function and rotary module are replaced, through
transformers' attention interface: the form of attention rotates, updates the cache and attends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.attention_inputs import AttentionInputs
from medusa_trt.export.modeling.attention_probe import (
    PassThroughCache,
    chunks_from_config,
    replace_attention,
    watch_attention_shapes,
)
from medusa_trt.export.modeling.dense_experts import replace_experts
from medusa_trt.export.modeling.rotary import (
    IdentityRotary,
    make_rotary_tables,
    rotation_types_from_config,
)
from medusa_trt.tree_configs.tree import MAX_NODES

_ROTARY_SPARE = 128
"""Positions beyond the longest sequence, for a tree's nodes at its end."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a model's KV cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


def cache_shape_from_model(model: PreTrainedModel, max_length: int) -> CacheShape:
    """Finds the sizes of a model's KV cache by what it gives its attention."""
    calls = watch_attention_shapes(model, max_length)
    return CacheShape(len(calls), calls[0].key.shape[1], calls[0].key.shape[3])


class VerifyModule(nn.Module):
    """Backbone over a tree's nodes: reductions and hidden states of the wanted rows."""

    def __init__(self, model: PreTrainedModel, max_length: int, form: type[AttentionForm]) -> None:
        """Reads from a model what the graph needs.

        Args:
            model: a causal language model with a rotary embedding.
            max_length: length of the longest sequence, in tokens.
            form: how the graph attends and updates the cache.
        """
        super().__init__()
        self.model = model
        self.form = form
        self.max_length = max_length
        self.shape = cache_shape_from_model(model, max_length)
        kinds = rotation_types_from_config(model.config)
        num_spare = MAX_NODES if form.has_position_per_row else _ROTARY_SPARE
        tables = make_rotary_tables(model, max_length, max_length + num_spare)
        for index, table in enumerate(tables.values()):
            for name, values in zip(_name_tables(index), table, strict=True):
                self.register_buffer(name, values.to(model.dtype), persistent=False)
        self._chunks = chunks_from_config(model.config)
        self._dtype = model.dtype
        self._table_of_layer = [list(tables).index(kind) for kind in kinds]
        self._rotary_dim = 2 * next(iter(tables.values()))[0].shape[1]
        self._attention: AttentionForm | None = None
        self.eval()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Lets the model attend as this module says inside the block, where it can be traced."""

        def attend(*args: Any, **options: Any) -> tuple[torch.Tensor, None]:
            assert self._attention is not None
            return self._attention(*args, **options)

        rotary = IdentityRotary(self._rotary_dim)
        with replace_attention(self.model, rotary, attend), replace_experts(self.model):
            yield

    def forward(
        self,
        input_ids: torch.Tensor,
        tree_mask: torch.Tensor,
        position_offsets: torch.Tensor,
        past_length: torch.Tensor,
        rows: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Computes one step over T nodes after `past_length` cached tokens.

        Args:
            input_ids: (B, T) int64; B is 1 unless the form takes a batch.
            tree_mask: (T, T) additive, 0 where a node sees another; (B, T, T) if the form
                `takes_tree_per_sequence`.
            position_offsets: (T,) int64, each node's depth; (B, T) likewise.
            past_length: (B,) int64.
            rows: (R,) int64, the wanted nodes.
            rest: `cache_positions` (L,) int64 where the form reads them; then key and
                value of each layer in turn, (B, kv_heads, capacity, head_dim).

        Returns:
            argmax (B * R,), hidden (B * R, hidden_size), logits (B * R, vocab), and the updated
            cache.
        """
        cache_positions, cache = None, list(rest)
        if self.form.reads_cache_positions:
            cache_positions, *cache = rest
        tables = [
            (getattr(self, cos), getattr(self, sin))
            for cos, sin in map(_name_tables, range(max(self._table_of_layer) + 1))
        ]
        inputs = AttentionInputs(
            cache=cache,
            tables=[tables[index] for index in self._table_of_layer],
            chunks=self._chunks,
            past_length=past_length,
            position_offsets=position_offsets,
            tree_mask=tree_mask,
            max_length=self.max_length,
            cache_positions=cache_positions,
        )
        self._attention = attention = self.form(inputs)
        hidden, logits = self._compute_hidden_and_logits(
            input_ids, inputs.position_ids, attention.mask.whole, rows
        )
        # The outputs are float32 in every precision, because numpy has no bfloat16.
        return logits.argmax(-1), hidden.float(), logits.float(), *attention.presents

    def _compute_hidden_and_logits(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        bias: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the unembedding's input and the model's logits, at the wanted rows alone.

        The model's code runs to the end, because it may scale or cap its logits.
        """
        hidden: list[torch.Tensor] = []

        def select_rows(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            selected = inputs[0].index_select(1, rows)
            hidden.append(selected.reshape(-1, selected.shape[-1]))
            return hidden[0]

        with self.model.get_output_embeddings().register_forward_pre_hook(select_rows):
            logits: torch.Tensor = self.model(
                input_ids=input_ids,
                attention_mask=bias,
                position_ids=position_ids,
                past_key_values=PassThroughCache(),
                use_cache=False,
            ).logits
        return hidden[0], logits

    def make_example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Makes inputs to trace with."""
        shape = self.shape
        batch = 2 if self.form.takes_batch else 1
        cache_dtype = self.form.cache_dtype
        dtype = self._dtype if cache_dtype is None else getattr(torch, cache_dtype)
        cache = [
            torch.zeros(batch, shape.num_kv_heads, 16, shape.head_dim, dtype=dtype)
            for _ in range(2 * shape.num_layers)
        ]
        num_nodes, num_rows, num_read = 6, 4, 14
        trees = (batch,) if self.form.takes_tree_per_sequence else ()
        return (
            torch.zeros(batch, num_nodes, dtype=torch.int64),
            torch.zeros(*trees, num_nodes, num_nodes),
            torch.zeros(*trees, num_nodes, dtype=torch.int64),
            torch.tensor([5, 7][:batch]),
            torch.arange(num_rows),
            *([torch.arange(num_read)] if self.form.reads_cache_positions else []),
            *cache,
        )


def _name_tables(index: int) -> tuple[str, str]:
    """Names of a rotary table's two tensors in the graph."""
    return ("cos", "sin") if index == 0 else (f"cos_{index}", f"sin_{index}")
