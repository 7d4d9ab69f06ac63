"""Which models are refused, and that a model is left as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundle_steps import (
    MAX_LOGIT_DIFFERENCE,
    expected_logits,
)
from support.model_families import (
    MAX_LENGTH,
    WINDOW,
    config,
    longrope,
    weighted_model,
)
from support.tiny_models import VOCAB_SIZE, random_model, save_tiny_model
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError
from medusa_trt.export.modeling.rotary import fix_rotary
from medusa_trt.export.modeling.support import refuse_unsupported
from medusa_trt.export.models.base_model import open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.streamed_model import supply_weights


def test_watching_a_model_leaves_it_as_it_was() -> None:
    model = weighted_model(longrope(MAX_LENGTH // 4))
    text = np.arange(8)
    before = expected_logits(model, text)
    with fix_rotary(model, MAX_LENGTH):
        assert np.abs(expected_logits(model, text) - before).max() > MAX_LOGIT_DIFFERENCE
    refuse_unsupported(model, MAX_LENGTH)
    assert np.array_equal(expected_logits(model, text), before)
    assert model.config.sliding_window is None


REFUSED = {
    "layers of another kind than attention \\(conv\\)": config(
        "lfm2", layer_types=["conv", "full_attention"]
    ),
    "attention outside the attention interface": config("stablelm"),
    "positions other than rotary embeddings": config("gpt2"),
    "experts other than plain gated ones \\(GptOssExperts\\)": config("gpt_oss"),
    "no rotary embedding in layer 1": config(
        "exaone4", sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "a rotary embedding other than of halves, right before attention": config("cohere"),
    "24 rotated of 24 head dimensions": config("llama", head_dim=24),
    "attention other than once in each layer": config("diffllama"),
    "an attention mask of their own": config("doge"),
    "a rotary embedding of complex numbers": config("deepseek_v2"),
    "keys and values of several sizes": config("deepseek_v3"),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_would_come_out_wrong_is_refused_by_name(feature: str) -> None:
    model = weighted_model(REFUSED[feature])
    pattern = f"^{model.config.model_type} models with {feature}.*not supported: [^\n]*$"
    with pytest.raises(ExportError, match=pattern):
        refuse_unsupported(model, MAX_LENGTH)


def test_a_model_that_cannot_run_is_an_error_of_one_line() -> None:
    model = random_model(config("llama"))
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(3, 3)
    with pytest.raises(
        ExportError, match=r"^this llama model does not run \(RuntimeError: [^\n]*$"
    ):
        refuse_unsupported(model, MAX_LENGTH)


def test_a_hybrid_of_attention_layers_alone_is_supported() -> None:
    """Granite 4.0 micro calls itself stateful and has no recurrent layer."""

    def make(*layer_types: str) -> PreTrainedModel:
        positions = {"layer_types": list(layer_types), "position_embedding_type": "rope"}
        return random_model(config("granitemoehybrid", **positions))

    refuse_unsupported(make("attention", "attention"), MAX_LENGTH)
    with pytest.raises(ExportError, match="layers of another kind than attention"):
        refuse_unsupported(make("attention", "mamba"), MAX_LENGTH)


def test_a_rotary_module_that_looks_at_the_positions_is_watched_without_data() -> None:
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "short_mscale": 1.2,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 256,
    }
    model = random_model(config("phimoe", rope_parameters=scaling))
    refuse_unsupported(model, MAX_LENGTH)


def test_weights_that_are_read_past_their_layers_are_named(tmp_path: Path) -> None:
    layer_types = ["sliding_attention", "full_attention"] * 2
    gemma = config(
        "gemma3n_text",
        head_dim=16,
        num_hidden_layers=4,
        layer_types=layer_types,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.0] * 4,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
    )
    base = open_base_model(source_from_name(str(save_tiny_model(tmp_path / "gemma", gemma))))
    message = "gemma3n_text models with weights that are read outside the call of their layer"
    with supply_weights(base.model, base.weights), pytest.raises(ExportError, match=message):
        refuse_unsupported(base.model, MAX_LENGTH)
