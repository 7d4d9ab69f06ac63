"""Weights that are never all in memory: reading, tracing, writing and comparing in parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.model_families import config
from support.tiny_models import llama_config, random_model, save_tiny_model

from medusa_trt.export.modeling.rotary import make_rotary_tables
from medusa_trt.export.models.base_model import load_base_model, open_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights import streamed_model
from medusa_trt.export.weights.streamed_model import convert_model, supply_weights

TOKENS = torch.arange(40)[None] * 7


def streamed_logits(folder: Path) -> torch.Tensor:
    base = open_base_model(source_from_name(str(folder)))
    assert all(parameter.is_meta for parameter in base.model.parameters())
    with torch.no_grad(), supply_weights(base.model, base.weights):
        logits: torch.Tensor = base.model(TOKENS).logits
    assert all(parameter.is_meta for parameter in base.model.parameters())
    return logits


def loaded_logits(folder: Path) -> torch.Tensor:
    base = load_base_model(source_from_name(str(folder)))
    with torch.no_grad():
        logits: torch.Tensor = base.model(TOKENS).logits
    return logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "sharded", "pytorch", "without-prefix"])
def test_a_streamed_model_computes_what_a_loaded_one_does(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "model", llama_config(tie_word_embeddings=tied))
    model = random_model(llama_config(tie_word_embeddings=tied))
    state = model.state_dict()
    if kind == "bfloat16":
        model.bfloat16().save_pretrained(folder)
    elif kind == "sharded":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif kind == "pytorch":
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "without-prefix":
        renamed = {
            name.removeprefix("model."): tensor.clone()
            for name, tensor in state.items()
            if not (tied and name == "lm_head.weight")
        }
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(streamed_logits(folder), loaded_logits(folder))


def test_of_an_embedding_the_rows_alone_are_converted(tmp_path: Path) -> None:
    scaled = config("gemma3_text", head_dim=32, pad_token_id=299)
    folder = save_tiny_model(tmp_path / "model", scaled)
    random_model(scaled).bfloat16().save_pretrained(folder)
    base = open_base_model(source_from_name(str(folder)))
    sizes = []
    embedding = base.model.get_input_embeddings()
    with torch.no_grad(), supply_weights(base.model, base.weights):
        embedding.register_forward_pre_hook(lambda module, _: sizes.append(len(module.weight)))
        found = base.model(TOKENS).logits
    assert sizes == [TOKENS.numel()] and embedding.padding_idx == 299
    assert torch.equal(found, loaded_logits(folder))


def test_a_large_linear_layer_is_multiplied_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr(streamed_model, "_PART_SIZE", 1000)
    assert torch.allclose(streamed_logits(folder), loaded_logits(folder), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_frequencies_are_not_rounded(dtype: torch.dtype) -> None:
    """A rounded frequency turns far positions by another angle: a cosine was wrong by 0.26."""
    model = random_model(llama_config())
    converted, _ = convert_model(model, {}, dtype)
    assert converted.dtype == dtype
    expected, tables = (make_rotary_tables(one, 512, 512) for one in (model, converted))
    for kind, table in expected.items():
        assert all(torch.equal(*pair) for pair in zip(table, tables[kind], strict=True))
