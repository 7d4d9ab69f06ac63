"""What a model needs from its attention, found by running it on a few tokens.

The config does not tell enough: a model may rotate in another way, rotate in some layers only, or
change queries and keys between rotation and attention.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medusa_trt.export.modeling.attention_inputs import AttentionCall
from medusa_trt.export.modeling.dense_experts import replace_experts
from medusa_trt.export.modeling.rotary import (
    IdentityRotary,
    copy_rotary,
    make_rotary_tables,
    rotate,
    rotation_types_from_config,
)
from medusa_trt.export.weights.streamed_model import fake_parameters

_ATTENTION_NAME = "medusa_trt"
_NUM_TOKENS = 8
_WINDOW = 3
"""Sliding window during the run, short enough to hide some of the few tokens."""

_TOLERANCE = 1e-4
"""Tolerance relative to the largest value: far above rounding, far below another rotation."""

_DIM_STEP = 16
"""ONNX Runtime's kernel rotates multiples of this many dimensions."""

_REFUSED_OPTIONS = {"s_aux": "attention sinks", "position_bias": "an attention position bias"}


@dataclass(frozen=True, slots=True)
class ProbedCall(AttentionCall):
    """An attention call with what a traced step does not need.

    Attributes:
        mask: (1, 1, T, T) additive, or None.
        refused: unsupported features that the call needs, in words for users.
    """

    mask: torch.Tensor | None
    refused: tuple[str, ...]


@contextmanager
def replace_attention(
    model: PreTrainedModel, rotary: nn.Module, attention: Callable[..., object]
) -> Iterator[None]:
    """Replaces a model's rotary module and attention function inside the block."""
    original = model.base_model.rotary_emb, model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, eager_mask)
    model.base_model.rotary_emb, model.config._attn_implementation = rotary, _ATTENTION_NAME
    try:
        yield
    finally:
        model.base_model.rotary_emb, model.config._attn_implementation = original


def watch_attention(
    model: PreTrainedModel, rotary: nn.Module, mask: torch.Tensor | None
) -> list[ProbedCall]:
    """Runs a model on a few tokens and records its attention calls.

    The replaced attention returns the values alone. So the queries and keys of a layer do not
    depend on the rotation in earlier layers.

    Args:
        model: a model that can run.
        rotary: the module that replaces the model's rotary module.
        mask: (1, 1, T, T) mask for the model; for None the model makes its mask.
    """
    calls: list[ProbedCall] = []

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        refused = tuple(
            name for option, name in _REFUSED_OPTIONS.items() if options.get(option) is not None
        )
        scores = options["scaling"], options.get("sliding_window"), options.get("softcap")
        states = query, key, value
        calls.append(ProbedCall(module.layer_idx, *states, *scores, attention_mask, refused))
        output = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return output.transpose(1, 2).contiguous(), None

    replaced = replace_attention(model, rotary, attention)
    with torch.no_grad(), replaced, replace_experts(model):
        model.base_model(
            input_ids=torch.arange(_NUM_TOKENS)[None] % model.config.vocab_size,
            position_ids=torch.arange(_NUM_TOKENS)[None],
            attention_mask=mask,
            use_cache=False,
        )
    return calls


def watch_attention_shapes(model: PreTrainedModel, max_length: int) -> list[ProbedCall]:
    """Records the attention calls of a model without data; their tensors have shapes only."""
    # Some rotary modules look at the values of the positions, so that of the model cannot run here.
    tables = make_rotary_tables(model, max_length, 1)
    rotary_dim = 2 * next(iter(tables.values()))[0].shape[1]
    with fake_parameters(model) as mode, mode:
        mask = torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS)
        return watch_attention(model, IdentityRotary(rotary_dim), mask)


def find_attention_problem(model: PreTrainedModel, max_length: int) -> str | None:
    """Finds why the verify graph's attention cannot replace that of a model that runs, or None."""
    window = getattr(model.config, "sliding_window", None)
    try:
        if window is not None:
            model.config.sliding_window = _WINDOW
        calls = watch_attention(model, copy_rotary(model, max_length), None)
    finally:
        if window is not None:
            model.config.sliding_window = window
    return _find_problem_of_calls(model, calls) or _find_problem_of_rotation(
        model, max_length, calls
    )


def _find_problem_of_calls(model: PreTrainedModel, calls: list[ProbedCall]) -> str | None:
    if [call.layer for call in calls] != list(range(model.config.num_hidden_layers)):
        return "attention other than once in each layer"
    position = torch.arange(_NUM_TOKENS)
    distance = position[:, None] - position
    for call in calls:
        if call.refused:
            return call.refused[0]
        reach = _NUM_TOKENS if call.window is None else _WINDOW
        is_visible = (distance >= 0) & (distance < reach)
        if call.mask is None or bool(((call.mask == 0) != is_visible).any()):
            return "an attention mask of their own"
        if not calls[0].key.shape == call.key.shape == call.value.shape:
            return "keys and values of several sizes"
    return None


def _find_problem_of_rotation(
    model: PreTrainedModel, max_length: int, calls: list[ProbedCall]
) -> str | None:
    kinds = rotation_types_from_config(model.config)
    if not any(kind is not None for kind in kinds):
        return "no rotary embedding"
    tables = make_rotary_tables(model, max_length, _NUM_TOKENS)
    rotary_dims = {2 * cos.shape[1] for cos, _ in tables.values()}
    rotary_dim, head_dim = max(rotary_dims), calls[0].key.shape[-1]
    if len(rotary_dims) > 1:
        return "rotary embeddings of several sizes"
    if rotary_dim % _DIM_STEP or head_dim % _DIM_STEP:
        return f"{rotary_dim} rotated of {head_dim} head dimensions, other than multiples of 16,"
    mask = torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS)
    plain = watch_attention(model, IdentityRotary(rotary_dim), mask)
    for call, before, kind in zip(calls, plain, kinds, strict=True):
        if before.mask is not mask:
            return "an attention mask of their own"
        for states, source in ((call.query, before.query), (call.key, before.key)):
            if kind is not None and torch.equal(states, source):
                return f"no rotary embedding in layer {call.layer}"
            expected = rotate(source, *tables[kind])
            is_close = (states - expected).abs().max() <= _TOLERANCE * expected.abs().max()
            if not is_close:  # also where a number is NaN
                return "a rotary embedding other than of halves, right before attention"
    return None
