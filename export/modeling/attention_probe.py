"""What a model asks of its attention, found by watching it on a few tokens.

Names in a config promise too little: a model may rotate otherwise, in some layers only, or do
something between rotation and attention.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medusa_trt.export.modeling.dense_experts import replaced_experts
from medusa_trt.export.modeling.rotary import (
    IdentityRotary,
    fix_rotary_length,
    make_rotary_tables,
    rotate,
    rotation_types_from_config,
)
from medusa_trt.export.weights.streamed_model import fake_parameters

_ATTENTION_NAME = "medusa_trt"
_NUM_TOKENS = 8
_WINDOW = 3
"""Of layers with a sliding window while they are watched, so that it cuts among few tokens."""

_TOLERANCE = 1e-4
"""Of the largest value; rounding stays far below, another rotation far above."""

_DIM_STEP = 16
"""ONNX Runtime's kernel rotates a multiple of this many dimensions."""

_REFUSED_OPTIONS = {"s_aux": "attention sinks", "position_bias": "an attention position bias"}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One use of attention.

    Attributes:
        layer: the layer's index.
        query: (1, heads, T, head_dim), as attention got it.
        key: (1, kv_heads, T, head_dim).
        value: (1, kv_heads, T, head_dim).
        mask: (1, 1, T, T) additive, as attention got it; None if it got none.
        window: positions that the layer reaches back, itself included; None for all.
        softcap: bound of its scores; None for no bound.
        refused: what it asks for that is not supported, as a user would call it.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    window: int | None
    softcap: float | None
    refused: tuple[str, ...]


@contextmanager
def replaced_attention(
    model: PreTrainedModel, rotary: nn.Module, attention: Callable[..., object]
) -> Iterator[None]:
    """Lets a model use another rotary module and attention function inside the block."""
    own = model.base_model.rotary_emb, model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, eager_mask)
    model.base_model.rotary_emb, model.config._attn_implementation = rotary, _ATTENTION_NAME
    try:
        yield
    finally:
        model.base_model.rotary_emb, model.config._attn_implementation = own


def watch_attention(
    model: PreTrainedModel, rotary: nn.Module, mask: torch.Tensor | None
) -> list[AttentionCall]:
    """Runs the model on a few tokens with this rotary module.

    What attention gives back depends on the values alone, so that queries and keys do not depend
    on how earlier layers rotated theirs.

    Args:
        model: able to run.
        rotary: in place of its own.
        mask: (1, 1, T, T) given to the model; for None it makes its own.
    """
    calls: list[AttentionCall] = []

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **options: object,
    ) -> tuple[torch.Tensor, None]:
        layer = module.layer_idx
        assert isinstance(layer, int)
        refused = tuple(
            name for option, name in _REFUSED_OPTIONS.items() if options.get(option) is not None
        )
        calls.append(
            AttentionCall(
                layer, query, key, value, attention_mask, sliding_window, softcap, refused
            )
        )
        output = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return output.transpose(1, 2).contiguous(), None

    replaced = replaced_attention(model, rotary, attention)
    with torch.no_grad(), replaced, replaced_experts(model):
        model.base_model(
            input_ids=torch.arange(_NUM_TOKENS)[None],
            position_ids=torch.arange(_NUM_TOKENS)[None],
            attention_mask=mask,
            use_cache=False,
        )
    return calls


def watch_attention_shapes(model: PreTrainedModel, max_length: int) -> list[AttentionCall]:
    """The calls of a model whose parameters may have no data; their tensors have none either."""
    rotary = model.base_model.rotary_emb
    assert isinstance(rotary, nn.Module)
    fixed = fix_rotary_length(rotary, max_length)
    with fake_parameters(model) as mode, mode:
        return watch_attention(model, fixed, torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS))


def find_attention_problem(model: PreTrainedModel, max_length: int) -> str | None:
    """Why the verify graph's attention cannot stand for this model's, or None.

    Args:
        model: able to run.
        max_length: the longest sequence.
    """
    rotary = model.base_model.rotary_emb
    assert isinstance(rotary, nn.Module)
    fixed = fix_rotary_length(rotary, max_length)
    with _short_window(model):
        calls = watch_attention(model, fixed, None)
    return _problem_of_calls(model, calls) or _problem_of_rotation(model, fixed, calls)


@contextmanager
def _short_window(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model make its masks with a window that cuts among the tokens it is watched on."""
    own = getattr(model.config, "sliding_window", None)
    if own is not None:
        model.config.sliding_window = _WINDOW
    try:
        yield
    finally:
        if own is not None:
            model.config.sliding_window = own


def _problem_of_calls(model: PreTrainedModel, calls: list[AttentionCall]) -> str | None:
    if [call.layer for call in calls] != list(range(model.config.num_hidden_layers)):
        return "attention other than once in each layer"
    position = torch.arange(_NUM_TOKENS)
    distance = position[:, None] - position
    for call in calls:
        if call.refused:
            return call.refused[0]
        reach = _NUM_TOKENS if call.window is None else _WINDOW
        seen = (distance >= 0) & (distance < reach)
        if call.mask is None or bool(((call.mask == 0) != seen).any()):
            return "an attention mask of their own"
        if not calls[0].key.shape == call.key.shape == call.value.shape:
            return "keys and values of several sizes"
    return None


def _problem_of_rotation(
    model: PreTrainedModel, rotary: nn.Module, calls: list[AttentionCall]
) -> str | None:
    kinds = rotation_types_from_config(model.config)
    if not any(kind is not None for kind in kinds):
        return "no rotary embedding"
    tables = make_rotary_tables(rotary, kinds, _NUM_TOKENS)
    rotary_dims = {2 * cos.shape[1] for cos, _ in tables.values()}
    rotary_dim, head_dim = max(rotary_dims), calls[0].key.shape[-1]
    if len(rotary_dims) > 1:
        return "rotary embeddings of several sizes"
    if rotary_dim % _DIM_STEP or head_dim % _DIM_STEP:
        return f"{rotary_dim} rotated of {head_dim} head dimensions, other than multiples of 16,"
    mask = torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS)
    plain = watch_attention(model, IdentityRotary(rotary_dim), mask)
    for own, before, kind in zip(calls, plain, kinds, strict=True):
        if before.mask is not mask:
            return "an attention mask of their own"
        for found, source in ((own.query, before.query), (own.key, before.key)):
            if kind is not None and torch.equal(found, source):
                return f"no rotary embedding in layer {own.layer}"
            if not _close(found, rotate(source, *tables[kind])):
                return "a rotary embedding other than of halves, right before attention"
    return None


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left - right).abs().max() <= _TOLERANCE * right.abs().max())
