"""Weights of GGUF files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints.gguf_files import write_gguf
from support.tiny_models import llama_config, random_model
from transformers import AutoModelForCausalLM

from medusa_trt.export.models.base_model import load_model
from medusa_trt.export.models.gguf_weights import weights_from_gguf
from medusa_trt.export.models.source import ModelSource, source_from_name
from medusa_trt.export.weights.streamed_model import make_empty_model


def assert_equals_transformers(source: ModelSource) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(source.location, gguf_file=source.gguf_file)
    state = load_model(source, torch.float32).state_dict()
    expected = loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_demo_models_weights_are_those_that_transformers_reads() -> None:
    assert_equals_transformers(source_from_name("smollm2-135m"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_that_transformers_reads(kind: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(llama_config(tie_word_embeddings=tied))
    write_gguf(tmp_path / "tiny.gguf", model, kind)
    assert_equals_transformers(source_from_name(str(tmp_path / "tiny.gguf")))


def test_a_stored_unembedding_is_used_although_the_config_says_tied(tmp_path: Path) -> None:
    """transformers calls some architectures tied whatever their files hold."""
    stored = random_model(llama_config())
    write_gguf(tmp_path / "tiny.gguf", stored, "Q4_0")
    model = make_empty_model(llama_config(tie_word_embeddings=True))
    weights = weights_from_gguf(model, tmp_path / "tiny.gguf")
    assert weights is not None and not model.config.tie_word_embeddings
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert np.array_equal(weights[name].stored(), stored.state_dict()[name].numpy())
