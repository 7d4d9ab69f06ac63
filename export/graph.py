"""The verify graph as a torch module around the model's own code.

The model runs unchanged; its attention function and rotary module are replaced through
transformers' attention interface, so that one operator rotates, updates the cache and attends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medusa_trt.errors import ExportError
from medusa_trt.export.attention_probe import attention_calls, attention_problem
from medusa_trt.export.device_attention import DecomposedAttention, DeviceAttention
from medusa_trt.export.rotary import IdentityRotary, rotary_tables
from medusa_trt.export.scatter_attention import ScatterAttention
from medusa_trt.export.streamed_model import fake_parameters
from medusa_trt.export.targets import AttentionForm
from medusa_trt.runtime.operators import DOMAIN

ROTARY_SPARE = 128
"""Positions beyond the longest sequence: a tree's nodes at its end still have one."""

_ATTENTION_NAME = "medusa_group_query_attention"

DEVICE_FORMS: dict[str, type[DeviceAttention]] = {
    "device_attention": DeviceAttention,
    "decomposed_attention": DecomposedAttention,
}
"""Forms whose graphs take `cache_positions`."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of the KV cache that a model needs."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


def sliding_window_of(model: PreTrainedModel) -> int | None:
    """How many tokens a model's attention reaches back in some layer, where that is limited."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return int(window) if window and used else None


def refuse_unsupported(model: PreTrainedModel, max_length: int | None = None) -> None:
    """Refuses what `GroupQueryAttention` with a tree mask cannot express.

    Args:
        model: able to run.
        max_length: the longest sequence; a sliding window that reaches over all of it is none.

    Raises:
        ExportError: the feature by its name.
    """
    window = sliding_window_of(model)
    reaches_all = window is not None and max_length is not None and max_length <= window
    found = _problem_in_config(model, reaches_all) or attention_problem(model, reaches_all)
    if found is not None:
        raise ExportError(
            f"{model.config.model_type} models with {found} are not supported: "
            "use a model without it, or open an issue"
        )


def _problem_in_config(model: PreTrainedModel, window_reaches_all: bool) -> str | None:
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if window_reaches_all:
        layer_types.discard("sliding_attention")
    window = sliding_window_of(model)
    found = None
    if not getattr(model, "_supports_attention_backend", False):
        found = "attention outside the attention interface of transformers"
    elif window is not None and not window_reaches_all:
        found = f"a sliding window of {window} tokens (a --max-length of at most that avoids it)"
    elif getattr(config, "attn_logit_softcapping", None):
        found = f"attention soft-capping at {config.attn_logit_softcapping}"
    elif model._is_stateful:
        found = "a state other than keys and values"
    elif layer_types:
        found = f"layers of another kind than full attention ({', '.join(sorted(layer_types))})"
    elif not isinstance(getattr(model.base_model, "rotary_emb", None), nn.Module):
        found = "positions other than one rotary embedding for all layers"
    elif any(isinstance(value, dict) for value in rope.values()):
        found = "a rotary embedding for each type of layer"
    elif rope.get("rope_type") in ("dynamic", "longrope"):
        found = f"{rope['rope_type']} rotary scaling"
    elif any("Experts" in type(module).__name__ for module in model.modules()):
        found = "mixture-of-experts layers"
    return found


class VerifyModule(nn.Module):
    """Backbone over a tree's nodes: reductions and hidden states of the asked rows."""

    def __init__(self, model: PreTrainedModel, max_length: int, form: AttentionForm) -> None:
        """Takes the model over: its attention and rotary module are replaced until `release`.

        Args:
            model: a causal language model with a rotary embedding.
            max_length: the longest sequence that the graph must reach.
            form: how it attends and updates the cache.
        """
        super().__init__()
        self.model = model
        self.form = form
        rotary = model.base_model.rotary_emb
        assert isinstance(rotary, nn.Module)
        with fake_parameters(model) as mode, mode:
            calls = attention_calls(model, rotary)
        self.shape = CacheShape(len(calls), calls[0].key.shape[1], calls[0].key.shape[3])
        cos, sin = rotary_tables(rotary, max_length + ROTARY_SPARE)
        self.cos = nn.Buffer(cos.to(model.dtype), persistent=False)
        self.sin = nn.Buffer(sin.to(model.dtype), persistent=False)
        self._replaced = rotary, model.config._attn_implementation
        model.base_model.rotary_emb = IdentityRotary(2 * cos.shape[1])
        model.config._attn_implementation = _ATTENTION_NAME
        self.eval()

    def release(self) -> None:
        """Gives the model its own attention and rotary module back."""
        self.model.base_model.rotary_emb, self.model.config._attn_implementation = self._replaced

    def forward(
        self,
        input_ids: torch.Tensor,
        tree_mask: torch.Tensor,
        position_offsets: torch.Tensor,
        past_length: torch.Tensor,
        rows: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """One step over T nodes after `past_length` cached tokens.

        Args:
            input_ids: (B, T) int64; B is 1 unless the form takes more.
            tree_mask: (T, T) additive, 0 where a node sees another.
            position_offsets: (T,) int64, each node's depth.
            past_length: (B,) int64.
            rows: (R,) int64, the nodes to report on.
            rest: `cache_positions` (L,) int64 where the form reads the cache on a device; then
                key and value of each layer in turn, (B, kv_heads, capacity, head_dim).

        Returns:
            argmax (B * R,), hidden (B * R, hidden_size), logits (B * R, vocab), and the updated
            cache.
        """
        position_ids = past_length[:, None] + position_offsets
        attention = self._attention(tree_mask, past_length, position_offsets, position_ids, rest)
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, attention)
        hidden, logits = self._hidden_and_logits(input_ids, position_ids, attention.bias, rows)
        # Reported as float32 in every precision, the one type that numpy has too.
        return logits.argmax(-1), hidden.float(), logits.float(), *attention.presents

    def _attention(
        self,
        tree_mask: torch.Tensor,
        past_length: torch.Tensor,
        position_offsets: torch.Tensor,
        position_ids: torch.Tensor,
        rest: tuple[torch.Tensor, ...],
    ) -> "_CachedAttention | _TreeAttention | ScatterAttention | DeviceAttention":
        if self.form in DEVICE_FORMS:
            return DEVICE_FORMS[self.form](
                cache=rest[1:],
                cos=self.cos,
                sin=self.sin,
                past_length=past_length,
                position_ids=position_ids,
                tree_mask=tree_mask,
                cache_positions=rest[0],
            )
        cache = rest
        if self.form == "tensor_scatter":
            return ScatterAttention(
                cache=cache,
                cos=self.cos,
                sin=self.sin,
                past_length=past_length,
                position_ids=position_ids,
                tree_mask=tree_mask,
                num_nodes=position_ids.shape[1],
            )
        if self.form == "tree_attention":
            return _TreeAttention(
                cache=cache,
                bias=tree_mask[None, None],
                shared_inputs=[past_length, position_offsets, tree_mask, self.cos, self.sin],
            )
        # A symbolic size: int() would make the tracer ask for its value.
        num_past = cast(int, past_length.item())
        torch._check(num_past >= 0)
        past_mask = tree_mask.new_zeros(tree_mask.shape[0], num_past)
        return _CachedAttention(
            cache=cache,
            cos=self.cos,
            sin=self.sin,
            position_ids=position_ids,
            total_length=(past_length + position_ids.shape[1]).to(torch.int32),
            bias=torch.cat([past_mask, tree_mask], dim=1)[None, None],
        )

    def _hidden_and_logits(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        bias: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the unembedding reads and what the model makes of it, at the asked rows alone.

        The model's own code runs to the end, because it may scale or cap its logits.
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
                past_key_values=_PassThroughCache(),
                use_cache=False,
            ).logits
        return hidden[0], logits

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs to trace with."""
        shape = self.shape
        batch = 1 if self.form == "group_query_attention" else 2
        dtype = torch.bfloat16 if self.form == "tree_attention" else self.cos.dtype
        cache = [
            torch.zeros(batch, shape.num_kv_heads, 16, shape.head_dim, dtype=dtype)
            for _ in range(2 * shape.num_layers)
        ]
        num_nodes, num_rows, num_read = 6, 4, 14
        return (
            torch.zeros(batch, num_nodes, dtype=torch.int64),
            torch.zeros(num_nodes, num_nodes),
            torch.zeros(num_nodes, dtype=torch.int64),
            torch.tensor([5, 7][:batch]),
            torch.arange(num_rows),
            *([torch.arange(num_read)] if self.form in DEVICE_FORMS else []),
            *cache,
        )


class _CachedAttention:
    """Emits `com.microsoft.GroupQueryAttention`: rotary, cache update and masked attention.

    ONNX Runtime takes an attention bias with a past at batch 1 only, and writes the present into
    the past's memory when both are bound to it.
    """

    op_type = "com.microsoft::GroupQueryAttention"
    attributes: ClassVar[dict[str, int]] = {"do_rotary": 1}

    def __init__(
        self,
        *,
        cache: Sequence[torch.Tensor],
        cos: torch.Tensor,
        sin: torch.Tensor,
        position_ids: torch.Tensor,
        total_length: torch.Tensor,
        bias: torch.Tensor,
    ) -> None:
        self.cache = cache
        self.presents: list[torch.Tensor] = []
        self.bias = bias
        self.shared_inputs = [
            total_length - 1,
            total_length.reshape(()),
            cos,
            sin,
            position_ids,
            bias,
        ]

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface: (1, heads, T, head_dim) → (1, T, heads, head_dim)."""
        batch, num_heads, num_nodes, head_dim = query.shape
        layer = module.layer_idx
        assert isinstance(layer, int)
        past = self.cache[2 * layer : 2 * layer + 2]
        outputs = torch.onnx.ops.symbolic_multi_out(
            self.op_type,
            [
                *(
                    states.transpose(1, 2).reshape(batch, num_nodes, -1)
                    for states in (query, key, value)
                ),
                *past,
                *self.shared_inputs,
            ],
            {
                "num_heads": num_heads,
                "kv_num_heads": key.shape[1],
                "scale": float(scaling),
                **self.attributes,
            },
            dtypes=[query.dtype, past[0].dtype, past[1].dtype],
            shapes=[(batch, num_nodes, num_heads * head_dim), past[0].shape, past[1].shape],
            version=1,
        )
        self.presents += outputs[1:]
        return outputs[0].reshape(batch, num_nodes, num_heads, head_dim), None


class _TreeAttention(_CachedAttention):
    """Emits the operator library's `TreeAttention`, which makes its mask and positions itself."""

    op_type = f"{DOMAIN}::TreeAttention"
    attributes: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        *,
        cache: Sequence[torch.Tensor],
        bias: torch.Tensor,
        shared_inputs: list[torch.Tensor],
    ) -> None:
        self.cache, self.bias, self.shared_inputs = cache, bias, shared_inputs
        self.presents = []


class _PassThroughCache:
    """Gives attention the new keys and values alone: the operator itself joins the past."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def get_seq_length(self, *_: object) -> int:
        return 0
