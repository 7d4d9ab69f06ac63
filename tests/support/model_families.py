"""A tiny random model of each supported family."""

import support.stand_ins.chunked_llama  # noqa: F401  It registers the architecture.
import torch
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, random_model
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

MAX_LENGTH = 64
"""Longest sequence of the exports."""

WINDOW = 8
"""A sliding window that cuts, in the text and along the paths of a deep tree."""

_HYBRID = ["sliding_attention", "full_attention"]


def config(model_type: str, **changes: object) -> PretrainedConfig:
    """A tiny model of a family."""
    sizes: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "initializer_range": 0.2,
    }
    return AutoConfig.for_model(model_type, **(sizes | changes))


def rope(rope_type: str, **parameters: float) -> PretrainedConfig:
    """A Llama with rotary scaling."""
    values = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **parameters}
    return config("llama", rope_parameters=values)


def longrope(original_length: int) -> PretrainedConfig:
    """A Phi-3 with other frequencies beyond `original_length` tokens, far from the others."""
    return config(
        "phi3",
        original_max_position_embeddings=original_length,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * index for index in range(8)],
            "long_factor": [2.0 + 3.0 * index for index in range(8)],
        },
    )


FAMILIES = {
    "llama": config("llama"),
    "llama-tied-biased": config(
        "llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama-wide-heads": config("llama", head_dim=32),
    "llama-linear-rope": rope("linear"),
    # Scales beyond this length alone, which is the longest that can be exported.
    "llama-dynamic-rope": config(
        "llama",
        max_position_embeddings=4 * MAX_LENGTH,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "llama-llama3-rope": rope(
        "llama3",
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=128,
    ),
    "llama-yarn-rope": rope("yarn", original_max_position_embeddings=128),
    "mistral": config("mistral", sliding_window=None),
    "mistral-window": config("mistral", sliding_window=WINDOW),
    "mistral-wide-window": config("mistral", sliding_window=MAX_LENGTH),
    "qwen2": config("qwen2"),
    "qwen2-window": config(
        "qwen2", use_sliding_window=True, sliding_window=WINDOW, layer_types=_HYBRID
    ),
    "smollm3": config("smollm3", no_rope_layers=[1, 0]),
    "qwen3": config("qwen3", head_dim=32),
    "granite": config(
        "granite",
        logits_scaling=7.0,
        residual_multiplier=0.7,
        embedding_multiplier=3.0,
        attention_multiplier=0.3,
    ),
    "olmo2": config("olmo2"),
    "olmo3": config("olmo3", sliding_window=WINDOW, layer_types=_HYBRID),
    "phi3": config("phi3"),
    "phi3-window": config("phi3", sliding_window=WINDOW),
    "phi3-longrope": longrope(MAX_LENGTH // 4),
    "gemma": config("gemma", head_dim=16),
    "gemma2": config(
        "gemma2",
        tie_word_embeddings=False,
        head_dim=32,
        sliding_window=WINDOW,
        layer_types=_HYBRID,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "gemma3": config(
        "gemma3_text",
        tie_word_embeddings=False,
        head_dim=32,
        sliding_window=WINDOW,
        layer_types=_HYBRID,
        query_pre_attn_scalar=24,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "mixtral": config("mixtral", sliding_window=None, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": config(
        "qwen3_moe",
        head_dim=32,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        norm_topk_prob=False,
    ),
    "gpt_neox": config("gpt_neox", num_attention_heads=1, rotary_pct=0.25),
    "phi": config("phi", num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.5),
    "starcoder2": config("starcoder2", sliding_window=None),
    # Windows and attention sinks.
    "flint": config(
        "flint",
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention"] * 2,
        mlp_only_layers=[0, 1],
    ),
    "chunked_llama": config(
        "chunked_llama", attention_chunk_size=WINDOW, layer_types=["chunked_attention"] * 2
    ),
}

VARIANTS = {
    "gemma",
    "qwen2",
    "llama-linear-rope",
    "llama-dynamic-rope",
    "llama-yarn-rope",
    "llama-tied-biased",
    "mistral",
    "mistral-wide-window",
    "olmo3",
    "phi3-window",
    "granite",
    "llama-llama3-rope",
    "llama-wide-heads",
    "olmo2",
    "phi3-longrope",
    "qwen2-window",
    "qwen3",
    "qwen3_moe",
    "starcoder2",
}
"""Families whose forward is nearly that of another one."""


def weighted_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, with norms and biases that are not just ones and zeros."""
    model = random_model(config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model
