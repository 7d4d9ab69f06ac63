"""Checkpoints that are not what their config says, or that bring code along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.changed_model import TOKENS, Tensors, changed_model, compute_logits
from support.tiny_models import llama_config, random_model, save_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from medusa_trt.errors import ExportError
from medusa_trt.export.models.base_model import (
    BaseModel,
    load_base_model,
    open_base_model,
)
from medusa_trt.export.models.source import load_config, source_from_name
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.weights.streamed_model import supply_weights, tensor_from_array


def in_eight_bits(dtype: torch.dtype, limit: float) -> Callable[[Tensors], None]:
    """Layers' matrices as codes with one scale each."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "_proj." in name]:
            scale = tensors[name].abs().max() / limit
            tensors[name] = (tensors[name] / scale).to(dtype)
            tensors[f"{name}_scale"] = scale.reshape(1)

    return change


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_codes_are_never_taken_for_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    """transformers converts them to floating point and drops the scales."""
    folder = changed_model(tmp_path / "model", in_eight_bits(dtype, 127.0))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ExportError, match=f"down_proj.weight is {name}, and the config names no"):
        open_base_model(source_from_name(str(folder)))


@pytest.mark.parametrize("load", [open_base_model, load_base_model])
def test_an_unknown_quantization_is_refused(load: Callable[[Any], object], tmp_path: Path) -> None:
    """transformers would ignore it."""
    folder = changed_model(
        tmp_path / "model",
        in_eight_bits(torch.float8_e4m3fn, 448.0),
        quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"},
    )
    with pytest.raises(ExportError, match="quantized by 'modelopt' are not supported: give the"):
        load(source_from_name(str(folder)))


def test_code_that_comes_with_a_model_is_not_run_and_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = tmp_path / "harm"
    folder = changed_model(
        tmp_path / "model",
        lambda _: None,
        model_type="own",
        auto_map={"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"},
    )
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ExportError, match="it brings Python code of its own, which is not run"):
        load_config(source_from_name(str(folder)))
    assert not harm.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
        {"hidden_act": "nonsense"},
        {"quantization_config": {"quant_method": "spqr"}},
        {"quantization_config": [1]},
        {"vocab_size": 10**12},
    ],
)
def test_an_odd_config_is_an_error_of_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    folder = changed_model(tmp_path / "model", lambda _: None, **config)
    with pytest.raises(ExportError, match=r"^cannot load model [^\n]*$"):
        open_base_model(source_from_name(str(folder)))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gemma3", "gemma3 models have several kinds of input: only models of text alone"),
        ("llava", "llava models have several kinds of input"),
        ("t5", "t5 models have an encoder: only decoders are supported"),
        ("bart", "bart models have an encoder"),
    ],
)
def test_more_than_a_decoder_of_text_is_refused_by_name(
    model_type: str, message: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=message):
        open_base_model(source_from_name(str(tmp_path)))


def test_a_generation_config_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert {7, 9} < set(open_base_model(source_from_name(str(folder))).eos_token_ids)
    (folder / "generation_config.json").write_text('{"eos_token_id"')
    with pytest.raises(ExportError, match="not a valid JSON file"):
        open_base_model(source_from_name(str(folder)))
    (folder / "generation_config.json").unlink()
    open_base_model(source_from_name(str(folder)))


def test_ends_that_are_no_ids_are_found_before_the_work(tiny_heads: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    said: list[str] = []
    options = ExportOptions(
        model=str(folder), heads=tiny_heads, tree="chain-2", output=tmp_path / "bundle"
    )
    with pytest.raises(ExportError, match="replies by 'end', which is not a token id: correct"):
        export_bundle(options, said.append)
    assert said[-1] == "opening model"


def test_a_whole_file_is_taken_before_an_index_of_another_save(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    expected = compute_logits(folder)
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
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


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_wrapped_models_are_read(prefix: str, tmp_path: Path) -> None:
    """torch.compile and DistributedDataParallel save their models with such names."""

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    folder = changed_model(tmp_path / "model", wrap)
    with torch.no_grad():
        expected = random_model(llama_config())(TOKENS).logits
    assert torch.equal(compute_logits(folder), expected)
