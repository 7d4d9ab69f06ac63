"""Files of weights that are not what the config or the index says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.changed_model import (
    TOKENS,
    Tensors,
    changed_model,
    compute_logits,
    in_eight_bits,
)
from support.tiny_models import llama_config, random_model, save_tiny_model
from transformers import AutoModelForCausalLM

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import (
    BaseModel,
    load_base_model,
    load_model,
    open_base_model,
)
from medusa_trt.export.models.checkpoint_weights import (
    find_weight_files,
    weights_from_checkpoint,
)
from medusa_trt.export.models.multimodal.text_part import make_text_part
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.weights.streamed_model import (
    supply_weights,
    tensor_from_array,
)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_codes_are_never_taken_for_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    """transformers converts them to floating point and drops the scales."""
    folder = changed_model(tmp_path / "model", in_eight_bits(dtype, 127.0))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ExportError, match=f"down_proj.weight is {name}, and the config names no"):
        weights_from_checkpoint(make_text_part(llama_config()), str(folder))


def test_a_whole_file_is_taken_before_an_index_of_another_save(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    expected = compute_logits(folder)
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert find_weight_files(str(folder)) == [folder / "model.safetensors"]
    assert torch.equal(compute_logits(folder), expected)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, expected, atol=1e-5)


@pytest.mark.parametrize("load", [open_base_model, load_base_model])
@pytest.mark.parametrize("place", [0, -1])
def test_a_tensor_in_two_shards_must_have_one_value(
    place: int, load: Callable[[Any], BaseModel], tmp_path: Path
) -> None:
    """An index that reuses a file of another checkpoint; transformers reads the last shard's."""
    save_tiny_model(tmp_path)
    random_model(llama_config()).save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors").unlink()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files, name = sorted(set(index.values())), "model.layers.0.mlp.down_proj.weight"
    home, other = tmp_path / index[name], tmp_path / files[place]
    assert other != home
    expected = load_file(home)[name]
    save_file(load_file(other) | {name: expected}, other, {"format": "pt"})
    weights = load(source_from_name(str(tmp_path))).weights
    assert torch.equal(tensor_from_array(weights[name].stored()), expected)
    save_file(load_file(other) | {name: expected + 1}, other, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"{other.name} holds another {name} than {home.name}, "):
        load(source_from_name(str(tmp_path)))


def different_unembedding(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()


@pytest.mark.parametrize("load", [open_base_model, load_base_model])
@pytest.mark.parametrize("change", [different_unembedding, lambda _: None])
def test_a_stored_unembedding_is_used_although_the_config_says_tied(
    load: Callable[[Any], BaseModel], change: Callable[[Tensors], None], tmp_path: Path
) -> None:
    def store_both(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        change(tensors)

    folder = changed_model(tmp_path / "model", store_both, tie_word_embeddings=True)
    base = load(source_from_name(str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad(), supply_weights(base.model, base.weights):
        assert torch.equal(base.model(TOKENS).logits, model(TOKENS).logits)
    assert base.model.config.tie_word_embeddings == (change is not different_unembedding)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."]
)
def test_names_of_wrapped_models_are_read(prefix: str, tmp_path: Path) -> None:
    """torch's wrappers save models with such names."""

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            inner = name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")
            tensors[prefix + inner] = tensors.pop(name)

    folder = changed_model(tmp_path / "model", wrap)
    with torch.no_grad():
        expected = random_model(llama_config())(TOKENS).logits
        loaded = load_model(source_from_name(str(folder)), torch.float32)(TOKENS).logits
    assert torch.equal(compute_logits(folder), expected)
    assert torch.equal(loaded, expected)


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    state = random_model(llama_config()).state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    for change, message in (
        ({name: None}, f"lacks weights of the model: {name}"),
        ({name: torch.zeros(5, 64)}, rf"{name} is \(5, 64\), the config says \(96, 64\)"),
    ):
        kept = {key: value for key, value in (state | change).items() if value is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ExportError, match=message):
            weights_from_checkpoint(make_text_part(llama_config()), str(folder))


def test_an_index_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = '{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ExportError, match="points outside its folder"):
        weights_from_checkpoint(make_text_part(llama_config()), str(folder))
