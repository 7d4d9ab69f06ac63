"""PEFT adapters merged into their backbone: the model computes what PEFT computes with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.checkpoints.conversions import Block
from support.tiny_models import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    llama_config,
    make_byte_tokenizer,
    save_tiny_model,
)
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.head_conversion.backbone import Backbone
from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHead
from medusa_trt.export.models.adapter import merge_adapter
from medusa_trt.export.models.base_model import load_base_model
from medusa_trt.export.models.heads_choice import choose_heads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.pipeline import ExportOptions
from medusa_trt.export.preparation import parts_from_options

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
    tokenizer = make_byte_tokenizer()
    missing = NUM_TOKENS - len(tokenizer)
    tokenizer.add_tokens([f"<tool{index}>" for index in range(missing)])
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    loaded = load_base_model(source_from_name(str(folder)))
    assert loaded.warnings == ()
    assert loaded.eos_token_ids == [7, 9, 257]
    assert loaded.tokenizer.encode(f"<tool{missing - 1}>") == [NUM_TOKENS - 1]
    assert Backbone(source_from_name(str(folder)), "tuned").config.vocab_size == NUM_TOKENS


def part_of(head: MedusaHead, layer: int, kinds: list[str]) -> torch.Tensor:
    part = head.unembedding if len(kinds) == 1 else getattr(head.blocks[layer], kinds[-1])
    assert isinstance(part, torch.Tensor)
    return part


def lora_adapter(folder: Path, model: Path) -> None:
    """An adapter as PEFT itself saves it: LoRA on two projections, and heads."""
    torch.manual_seed(6)
    backbone: Any = AutoModelForCausalLM.from_pretrained(model)
    unembedding = [nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False) for _ in range(2)]
    heads = [nn.Sequential(Block(), linear) for linear in unembedding]
    backbone.medusa_head = nn.Sequential(*heads)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "up_proj"],
        modules_to_save=["medusa_head"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    adapted = get_peft_model(backbone, config)
    adapted.save_pretrained(str(folder))


def test_an_adapter_changes_the_backbone_that_its_heads_draft_for(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    lora_adapter(folder, tiny_model)
    stored = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    tensors = {
        key.removeprefix(f"{prefix}medusa_head."): tensor
        for key, tensor in stored.items()
        if "medusa_head" in key
    }
    assert len(tensors) == 6
    expected = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    num_changed = 0
    for key in expected:
        name = prefix + key.removesuffix(".weight")
        if f"{name}.lora_A.weight" in stored:
            a, b = stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"]
            expected[key] = expected[key] + 12 / 4 * (b @ a)
            num_changed += 1
    assert num_changed == 4
    for model, heads in ((folder, None), (tiny_model, folder)):
        choice = choose_heads(source_from_name(str(model)), heads)
        assert choice.loaded is not None
        assert (choice.warnings, choice.loaded.format) == ((), "peft")
        found = load_base_model(choice.source).model.state_dict()
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)
    assert choice.loaded is not None
    read = load_heads(choice.loaded.path).heads
    for key, tensor in tensors.items():
        head, layer, *kinds = key.split(".")
        assert torch.equal(tensor, part_of(read.heads[int(head)], int(layer), kinds))


def test_the_export_says_that_an_adapter_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    lora_adapter(folder, tiny_model)
    told: list[str] = []
    options = ExportOptions(
        model=str(folder), tree="plain", precision="fp32", output=tmp_path / "bundle"
    )
    parts_from_options(options, told.append)
    assert f"  the LoRA weights of {folder} are merged into it" in told


def test_adapters_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    lora_adapter(folder, tiny_model)
    config = json.loads((folder / "adapter_config.json").read_text())
    unnamed = json.dumps(config | {"base_model_name_or_path": None})
    (folder / "adapter_config.json").write_text(unnamed)
    with pytest.raises(ExportError, match="does not name its base model: give the model with --mo"):
        source_from_name(str(folder))
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def merge() -> None:
        merge_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), folder)

    save_file({name: t for name, t in stored.items() if name != key}, file)
    with pytest.raises(HeadsError, match=r"does not fit: it lacks .*q_proj\.lora_A"):
        merge()
    save_file(stored | {key.replace("q_proj", "k_proj"): stored[key].clone()}, file)
    with pytest.raises(HeadsError, match=r"does not fit: it has .*k_proj\.lora_A"):
        merge()
    save_file(stored | {key: stored[key][:, 1:].contiguous()}, file)
    with pytest.raises(HeadsError, match=r"does not fit the model: .*size mismatch"):
        merge()
