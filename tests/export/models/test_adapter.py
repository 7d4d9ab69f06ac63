"""PEFT adapters merged into their backbone: the model computes what PEFT computes with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny_models import byte_tokenizer, llama_config, save_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_conversion.backbone import Backbone
from medusa_trt.export.models.base_model import load_base_model
from medusa_trt.export.models.source import source_from_name

TOKENS = torch.arange(40)[None] * 7
NUM_TOKENS = 305

KINDS: dict[str, dict[str, Any]] = {
    "layers": {"target_modules": ["q_proj", "up_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "unembedding": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both tied": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved unembedding": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 299]},
}


def save_adapter(folder: Path, base: Path, size: int | None, **options: Any) -> None:
    """Saves an adapter with random weights, as PEFT does after a training."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if size is not None:
        model.resize_token_embeddings(size)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **options)
    adapted: Any = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(str(folder))


def logits_of(model: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


def logits_with_peft(folder: Path, base: Path, size: int | None, tokens: torch.Tensor) -> Any:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base)
    if size is not None:
        model.resize_token_embeddings(size)
    return logits_of(PeftModel.from_pretrained(model, str(folder)), tokens)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [None, NUM_TOKENS])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_compute_what_peft_computes(
    kind: str, size: int | None, tied: bool, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save_tiny_model(base, llama_config(tie_word_embeddings=tied))
    save_adapter(folder, base, size, **KINDS[kind])
    if (kind, size, tied) in (("embedding", 305, False), ("unembedding", 305, False)):
        # PEFT keeps new rows of one of the two, those of the other were random in the training.
        with pytest.raises(HeadsError, match=r"305 tokens and the model 300, but only"):
            load_base_model(source_from_name(str(folder)))
        return
    tokens = TOKENS if size is None else torch.cat([TOKENS, torch.tensor([[size - 1]])], 1)
    model = load_base_model(source_from_name(str(folder))).model
    expected = logits_with_peft(folder, base, size, tokens)
    torch.testing.assert_close(logits_of(model, tokens), expected, rtol=1e-5, atol=1e-4)
    assert model.config.vocab_size == expected.shape[-1]
    is_one = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.tie_word_embeddings == is_one


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tokens_that_an_adapter_adds_are_known_to_its_tokenizer(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save_tiny_model(base)
    save_adapter(folder, base, NUM_TOKENS, **KINDS["layers"])
    (warning,) = load_base_model(source_from_name(str(folder))).warnings
    assert "has 305 tokens, its model 300, and no tokenizer lies beside it" in warning
    tokenizer = byte_tokenizer()
    missing = NUM_TOKENS - len(tokenizer)
    tokenizer.add_tokens([f"<tool{index}>" for index in range(missing)])
    tokenizer.save_pretrained(folder)
    loaded = load_base_model(source_from_name(str(folder)))
    assert loaded.warnings == ()
    assert loaded.tokenizer.encode(f"<tool{missing - 1}>") == [NUM_TOKENS - 1]
    assert Backbone(source_from_name(str(folder)), "tuned").config.vocab_size == NUM_TOKENS
