"""What a model needs from its attention, found by running it on a few tokens.

The config does not tell enough: a model may rotate in another way, rotate in some layers only, or
change queries and keys between rotation and attention.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medusa_trt.export.modeling.attention_inputs import AttentionCall, drop_idle_size
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
"""Sliding windows and chunks during the run, short enough to hide some of the few tokens."""

_TOLERANCE = 1e-4
"""Tolerance relative to the largest value: far above rounding, far below another rotation."""

_DIM_STEP = 16
"""ONNX Runtime's kernel rotates multiples of this many dimensions."""

_REFUSED_OPTIONS = {"position_bias": "an attention position bias"}
"""Names for users of arguments that no form of attention takes."""


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


class PassThroughCache:
    """Passes new keys and values on; the form of attention joins them with the past.

    Attributes:
        was_asked: whether the model asked for the number of cached tokens.
    """

    def __init__(self, num_cached: int = 0) -> None:
        """Says to the model that so many tokens are cached."""
        self._num_cached = num_cached
        self.was_asked = False

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def get_seq_length(self, *_: object) -> int:
        self.was_asked = True
        return self._num_cached


def chunks_from_config(config: PretrainedConfig) -> list[int | None]:
    """Reads how many positions a chunk of each layer has whose nodes see their own chunk alone."""
    num_layers = config.num_hidden_layers
    kinds = (getattr(config, "layer_types", None) or [""] * num_layers)[:num_layers]
    return [config.attention_chunk_size if kind == "chunked_attention" else None for kind in kinds]


def watch_attention(
    model: PreTrainedModel,
    rotary: nn.Module,
    mask: torch.Tensor | None,
    cache: PassThroughCache | None = None,
) -> list[ProbedCall]:
    """Runs a model on a few tokens and records its attention calls.

    The replaced attention returns the values alone. So the queries and keys of a layer do not
    depend on the rotation in earlier layers.

    Args:
        model: a model that can run.
        rotary: the module that replaces the model's rotary module.
        mask: (1, 1, T, T) mask for the model; for None the model makes its mask.
        cache: the cache that the model is given.
    """
    calls: list[ProbedCall] = []
    chunks = chunks_from_config(model.config)

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        calls.append(
            ProbedCall(
                module.layer_idx,
                query,
                key,
                value,
                options["scaling"],
                options.get("sliding_window"),
                chunks[module.layer_idx],
                options.get("softcap"),
                options.get("s_aux"),
                attention_mask,
                tuple(_list_refused(options, query.shape[1])),
            )
        )
        output = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return output.transpose(1, 2).contiguous(), None

    replaced = replace_attention(model, rotary, attention)
    with torch.no_grad(), replaced, replace_experts(model):
        model.base_model(
            input_ids=torch.arange(_NUM_TOKENS)[None] % model.config.vocab_size,
            position_ids=torch.arange(_NUM_TOKENS)[None],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=False,
        )
    return calls


def _list_refused(options: Mapping[str, Any], num_heads: int) -> Iterator[str]:
    """Lists what attention is asked for that no form has, in words for users."""
    for name, value in options.items():
        if name == "s_aux":
            if value is not None and value.shape != (num_heads,):
                yield "attention sinks other than one for each head"
        elif name in _REFUSED_OPTIONS:
            if value is not None:
                yield _REFUSED_OPTIONS[name]
        elif torch.is_tensor(value) and value.is_floating_point():
            yield f"an argument {name} of its attention"


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
    with _shorten_reach(model.config, max_length):
        calls = watch_attention(model, copy_rotary(model, max_length), None)
    return _find_problem_of_calls(model, max_length, calls) or _find_problem_of_rotation(
        model, max_length, calls
    )


@contextmanager
def _shorten_reach(config: PretrainedConfig, max_length: int) -> Iterator[None]:
    """Makes sliding windows and chunks short inside the block, unless they hide nothing."""
    found = {
        name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
    }
    sizes = {name: size for name, size in found.items() if drop_idle_size(size, max_length)}
    try:
        for name in sizes:
            setattr(config, name, _WINDOW)
        yield
    finally:
        for name, size in sizes.items():
            setattr(config, name, size)


def _find_problem_of_calls(
    model: PreTrainedModel, max_length: int, calls: list[ProbedCall]
) -> str | None:
    if [call.layer for call in calls] != list(range(model.config.num_hidden_layers)):
        return "attention other than once in each layer"
    position = torch.arange(_NUM_TOKENS)
    distance = position[:, None] - position
    for call in calls:
        if call.refused:
            return call.refused[0]
        window = drop_idle_size(call.window, max_length)
        reach = _NUM_TOKENS if window is None else _WINDOW
        is_visible = (distance >= 0) & (distance < reach)
        if call.chunk is not None:
            is_visible &= position[:, None] // call.chunk == position // call.chunk
        # Some modules read the window when they are made, others when they are called.
        is_other = window not in (None, _WINDOW, getattr(model.config, "sliding_window", None))
        if is_other or call.mask is None or bool(((call.mask == 0) != is_visible).any()):
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
    cache = PassThroughCache()
    plain = watch_attention(model, IdentityRotary(rotary_dim), mask, cache)
    if cache.was_asked:
        late = PassThroughCache(max_length - _NUM_TOKENS)
        if _differ(plain, watch_attention(model, IdentityRotary(rotary_dim), mask, late)):
            return "queries that are scaled by the number of cached tokens"
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


def _differ(calls: list[ProbedCall], others: list[ProbedCall]) -> bool:
    """Whether queries or keys of two runs differ.

    A graph has the positions of the nodes, but not the number of cached tokens. Llama 4 scales
    queries by that number, from 8,191 tokens on.
    """
    return not all(
        torch.equal(call.query, other.query) and torch.equal(call.key, other.key)
        for call, other in zip(calls, others, strict=True)
    )
