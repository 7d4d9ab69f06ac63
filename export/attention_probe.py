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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medusa_trt.export.rotary import IdentityRotary, rotary_tables, rotated

_ATTENTION_NAME = "medusa_trt"
_NUM_TOKENS = 8
_TOLERANCE = 1e-4
"""Of the largest value; rounding stays far below, another rotation far above."""

_DIM_STEP = 16
"""ONNX Runtime's kernel rotates a multiple of this many dimensions."""

_REFUSED_OPTIONS = {
    "sliding_window": "a sliding window",
    "softcap": "attention soft-capping",
    "s_aux": "attention sinks",
    "position_bias": "an attention position bias",
}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One use of attention.

    Attributes:
        layer: the layer's index.
        query: (1, heads, T, head_dim), as attention got it.
        key: (1, kv_heads, T, head_dim).
        value: (1, kv_heads, T, head_dim).
        own_mask: whether the mask is another than the one given to the model.
        options: names of the arguments that are not None.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    own_mask: bool
    options: frozenset[str]


@contextmanager
def replaced_attention(
    model: PreTrainedModel, rotary: nn.Module, attention: Callable[..., object]
) -> Iterator[None]:
    """Lets a model use another rotary module and attention function inside the block."""
    own = model.base_model.rotary_emb, model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, attention)
    model.base_model.rotary_emb, model.config._attn_implementation = rotary, _ATTENTION_NAME
    try:
        yield
    finally:
        model.base_model.rotary_emb, model.config._attn_implementation = own


def attention_calls(model: PreTrainedModel, rotary: nn.Module) -> list[AttentionCall]:
    """Runs the model on a few tokens with this rotary module.

    What attention gives back depends on the values alone, so that queries and keys do not depend
    on how earlier layers rotated theirs.
    """
    calls: list[AttentionCall] = []
    mask = torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS)

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: object,
    ) -> tuple[torch.Tensor, None]:
        given = frozenset(name for name, option in options.items() if option is not None)
        layer = module.layer_idx
        assert isinstance(layer, int)
        calls.append(AttentionCall(layer, query, key, value, attention_mask is not mask, given))
        output = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return output.transpose(1, 2).contiguous(), None

    with torch.no_grad(), replaced_attention(model, rotary, attention):
        model.base_model(
            input_ids=torch.arange(_NUM_TOKENS)[None],
            position_ids=torch.arange(_NUM_TOKENS)[None],
            attention_mask=mask,
            use_cache=False,
        )
    return calls


def attention_problem(model: PreTrainedModel, window_reaches_all: bool = False) -> str | None:
    """Why `GroupQueryAttention` cannot stand for this model's attention, or None.

    Args:
        model: able to run.
        window_reaches_all: whether a sliding window is no limit on the sequences to come.
    """
    rotary = model.base_model.rotary_emb
    assert isinstance(rotary, nn.Module)
    calls = attention_calls(model, rotary)
    if [call.layer for call in calls] != list(range(model.config.num_hidden_layers)):
        return "attention other than once in each layer"
    harmless = {"sliding_window"} if window_reaches_all else set()
    for call in calls:
        if refused := sorted(call.options & _REFUSED_OPTIONS.keys() - harmless):
            return _REFUSED_OPTIONS[refused[0]]
        if call.own_mask:
            return "an attention mask of their own"
        if not calls[0].key.shape == call.key.shape == call.value.shape:
            return "keys and values of several sizes"
    cos, sin = rotary_tables(rotary, _NUM_TOKENS)
    rotary_dim, head_dim = 2 * cos.shape[1], calls[0].key.shape[-1]
    if rotary_dim % _DIM_STEP or head_dim % _DIM_STEP:
        return f"{rotary_dim} rotated of {head_dim} head dimensions, other than multiples of 16,"
    plain = attention_calls(model, IdentityRotary(rotary_dim))
    for own, before in zip(calls, plain, strict=True):
        for found, source in ((own.query, before.query), (own.key, before.key)):
            if torch.equal(found, source):
                return f"no rotary embedding in layer {own.layer}"
            if not _close(found, rotated(source, cos, sin)):
                return "a rotary embedding other than of halves, right before attention"
    return None


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left - right).abs().max() <= _TOLERANCE * right.abs().max())
