"""Causal models around decoders that transformers has only as a part of another model."""

import torch
from support.checkpoints.multimodal_families import FAMILIES, weighted_whole_model

from medusa_trt.export.weights.causal_decoder import DecoderForCausalLM
from medusa_trt.export.weights.streamed_model import make_empty_model

TOKENS = torch.arange(12)[None]


def test_a_decoder_and_an_unembedding_compute_the_logits_of_the_whole_model() -> None:
    whole = weighted_whole_model(FAMILIES["qwen2_vl"])
    model = DecoderForCausalLM(whole.config.text_config, whole.get_decoder())
    model.set_output_embeddings(whole.get_output_embeddings())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        expected = whole(TOKENS).logits
        assert torch.allclose(model(TOKENS).logits, expected, atol=1e-5)
        assert torch.allclose(model(TOKENS, logits_to_keep=2).logits, expected[:, -2:], atol=1e-5)
        cache = model(TOKENS[:, :5], use_cache=True).cache
        rest = model(TOKENS[:, 5:], past_key_values=cache).logits
    assert torch.allclose(rest, expected[:, 5:], atol=1e-5)


def test_a_model_is_made_of_the_config_of_such_a_decoder() -> None:
    whole = weighted_whole_model(FAMILIES["qwen3_vl"])
    model = make_empty_model(whole.config.text_config)
    assert isinstance(model, DecoderForCausalLM)
    state = {
        name.replace("model.language_model.", "model."): parameter
        for name, parameter in whole.state_dict().items()
    }
    model.load_state_dict(state, strict=False, assign=True)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, whole(TOKENS).logits, atol=1e-5)
