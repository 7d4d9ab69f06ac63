"""What only some formats have: scales, ranks, shards, vLLM's options, adapters, merged models."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.head_files import (
    Tensors,
    all_tensors,
    change_config,
    vllm,
    write_heads,
    write_json,
)
from support.reference.heads import head_logits
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.graphs.heads_module import HeadsModule
from medusa_trt.export.heads.loading import load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHeads

MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])
MAX_LOGIT_DIFFERENCE = 1e-4
NO_BACKBONE = torch.full((VOCAB_SIZE, HIDDEN_SIZE), math.nan)
"""A backbone's unembedding that must not be read."""


def content(**options: int) -> Tensors:
    return head_tensors(**({"num_heads": 2, "num_layers": 1} | options))


def hidden_states() -> torch.Tensor:
    return torch.randn(3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))


def logits(heads: MedusaHeads) -> np.ndarray:
    module = HeadsModule(heads, NO_BACKBONE, top_k=5)
    return module.logits(hidden_states()).numpy()


def expected(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    return head_logits(arrays, NO_BACKBONE.double().numpy(), hidden_states().double().numpy())


def assert_drafts_like(heads: MedusaHeads, tensors: Mapping[str, torch.Tensor]) -> None:
    assert np.abs(logits(heads) - expected(tensors)).max() <= MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("per_row", [False, True])
def test_fp8_weights_of_modelopt_are_multiplied_with_their_scales(
    per_row: bool, tiny_model: Path, tmp_path: Path
) -> None:
    tensors, stored = content(), {}
    for key, tensor in tensors.items():
        if key.endswith(".bias"):
            stored[key] = tensor.half()
            tensors[key] = tensor.half().float()
            continue
        amax = tensor.abs().amax(1) if per_row else tensor.abs().amax()
        scale = amax / 448
        quantized = (tensor / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        stored[key] = quantized
        stored[key.replace("weight", "weight_scale")] = scale
        stored[key.replace("weight", "input_scale")] = torch.tensor(0.5)
        tensors[key] = quantized.float() * scale.reshape(-1, 1)
    folder = write_heads("modelopt", tmp_path / "heads", stored, tiny_model)
    loaded = load_heads(folder)
    assert (loaded.format, loaded.dtype, loaded.warnings) == (
        "modelopt",
        torch.float8_e4m3fn,
        (),
    )
    assert_drafts_like(loaded.heads, tensors)
    assert loaded.num_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_scales_without_fp8_weights_and_fp8_without_scales_are_refused(tmp_path: Path) -> None:
    tensors = content()
    key, scale = "1.0.linear.weight", {"1.0.linear.weight_scale": torch.tensor(1.0)}
    path = tmp_path / "heads.safetensors"
    save_file(tensors | scale, path)
    with pytest.raises(HeadsError, match=r"belong to no FP8 weight: 1\.0\.linear\.weight_scale"):
        load_heads(path)
    fp8 = {key: tensors[key].to(torch.float8_e4m3fn)}
    save_file(tensors | fp8, path)
    with pytest.raises(HeadsError, match=r"1\.0\.linear\.weight is FP8 without its 1\.0\.linear"):
        load_heads(path)
    save_file(tensors | fp8 | {"1.0.linear.weight_scale": torch.ones(3)}, path)
    with pytest.raises(HeadsError, match=r"weight_scale is \(3,\), expected one scale or \(64,\)"):
        load_heads(path)


def test_ranks_of_tensorrt_llm_are_joined(tiny_model: Path, tmp_path: Path) -> None:
    tensors = content()
    folder = write_heads("tensorrt-llm", tmp_path / "heads", tensors, tiny_model)
    whole = load_file(folder / "rank0.safetensors")
    whole["transformer.vocab_embedding.weight"] = torch.zeros(4, 2)
    whole["lm_head.weight"] = torch.zeros(4, 2)
    for rank in range(2):
        part = {key: tensor.chunk(2)[rank].contiguous() for key, tensor in whole.items()}
        save_file(part, folder / f"rank{rank}.safetensors")
    loaded = load_heads(folder)
    assert (loaded.format, loaded.backbone, loaded.warnings) == ("tensorrt-llm", None, ())
    assert_drafts_like(loaded.heads, tensors)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_only_the_shards_with_heads_are_opened(
    suffix: str, tiny_model: Path, tmp_path: Path
) -> None:
    tensors = content()
    heads = {f"medusa_head.{key}": tensor for key, tensor in tensors.items()}
    first, second = dict(list(heads.items())[:2]), dict(list(heads.items())[2:])
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    shards = [f"{stem}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)]
    for shard, part in zip(shards[1:], (first, second), strict=True):
        save_file(part, tmp_path / shard) if suffix != "bin" else torch.save(part, tmp_path / shard)
    (tmp_path / shards[0]).write_bytes(b"not opened")
    weight_map = {"model.embed_tokens.weight": shards[0], "lm_head.weight": shards[0]}
    weight_map |= dict.fromkeys(first, shards[1]) | dict.fromkeys(second, shards[2])
    index = tmp_path / f"{stem}.{suffix}.index.json"
    write_json(index, weight_map=weight_map)
    loaded = load_heads(tmp_path)
    assert (loaded.format, loaded.backbone) == ("fasterdecoding-merged", tmp_path)
    assert loaded.others == ("model.embed_tokens.weight", "lm_head.weight")
    assert_drafts_like(loaded.heads, tensors)

    write_json(index, weight_map=weight_map | {"medusa_head.0.0.linear.bias": shards[2]})
    with pytest.raises(HeadsError, match=r"lacks keys that .*: medusa_head\.0\.0\.linear\.bias"):
        load_heads(tmp_path)
    write_json(index, weight_map=weight_map | {"medusa_head.0.0.linear.bias": "../x.bin"})
    with pytest.raises(HeadsError, match="outside its folder"):
        load_heads(tmp_path)
    write_json(index, weight_map=weight_map)
    (tmp_path / shards[2]).unlink()
    with pytest.raises(HeadsError, match=f"a file that is not there: {shards[2]}"):
        load_heads(tmp_path)
    write_json(index, weight_map=[1])
    with pytest.raises(HeadsError, match="no weight_map"):
        load_heads(tmp_path)


@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
def test_vllms_truncated_heads_without_biases(prefix: str, tmp_path: Path) -> None:
    tensors = {k: t for k, t in content(vocab_size=len(MAP)).items() if not k.endswith("bias")}
    vllm(tmp_path, tensors | {"token_map": MAP}, tmp_path, vocab_size=VOCAB_SIZE)
    file = tmp_path / "model.safetensors"
    save_file({prefix + key: tensor for key, tensor in load_file(file).items()}, file)
    loaded = load_heads(tmp_path)
    assert (loaded.format, loaded.warnings) == ("vllm", ())
    assert (loaded.facts.vocab_size, loaded.facts.draft_vocab_size) == (VOCAB_SIZE, len(MAP))
    assert not loaded.facts.has_biases
    loaded.heads.check_fits(HIDDEN_SIZE, VOCAB_SIZE)
    assert_drafts_like(loaded.heads, tensors | {"token_map": MAP})


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_heads.0.weight"])
def test_vllms_original_lm_head_serves_every_head(name: str, tmp_path: Path) -> None:
    tensors = content()
    vllm(tmp_path, tensors, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    common = stored.pop("lm_heads.0.weight")
    del stored["lm_heads.1.weight"]
    save_file(stored | {name: common}, tmp_path / "model.safetensors")
    change_config(tmp_path, original_lm_head=True)
    loaded = load_heads(tmp_path)
    assert (loaded.facts.unembedding, loaded.warnings) == ("common", ())
    assert loaded.heads.heads[0].unembedding is loaded.heads.heads[1].unembedding
    assert_drafts_like(loaded.heads, tensors | {"1.1.weight": common})


def test_vllm_cuts_full_unembeddings_to_the_map_and_scales_logits(tmp_path: Path) -> None:
    tensors = content()
    vllm(tmp_path, tensors | {"token_map": MAP}, tmp_path, vocab_size=VOCAB_SIZE)
    change_config(tmp_path, logit_scale=0.25, truncated_vocab_size=len(MAP))
    loaded = load_heads(tmp_path)
    assert loaded.warnings == ()
    cut = {f"{head}.1.weight": tensors[f"{head}.1.weight"][MAP] * 0.25 for head in range(2)}
    assert_drafts_like(loaded.heads, tensors | cut | {"token_map": MAP})
    change_config(tmp_path, logit_scale=0)
    with pytest.raises(HeadsError, match="logit_scale 0: expected a number above 0"):
        load_heads(tmp_path)
    change_config(tmp_path, logit_scale=1)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(stored | {"token_map": MAP + VOCAB_SIZE}, tmp_path / "model.safetensors")
    with pytest.raises(HeadsError, match="rows that lm_head does not have"):
        load_heads(tmp_path)


def test_vllms_original_lm_head_sets_the_other_unembeddings_aside(tmp_path: Path) -> None:
    tensors = content()
    vllm(tmp_path, tensors, tmp_path)
    change_config(tmp_path, original_lm_head=True)
    loaded = load_heads(tmp_path)
    assert loaded.facts.unembedding == "common"
    assert len(loaded.warnings) == 1 and "unembedding of head 0" in loaded.warnings[0]
    common = tensors["0.1.weight"]
    assert_drafts_like(loaded.heads, tensors | {"1.1.weight": common})


@pytest.mark.parametrize("size", [None, VOCAB_SIZE])
def test_vllm_ignores_a_token_map_without_a_truncated_vocabulary(
    size: int | None, tmp_path: Path
) -> None:
    tensors = content()
    vllm(tmp_path, tensors | {"token_map": MAP}, tmp_path, vocab_size=VOCAB_SIZE)
    change_config(tmp_path, truncated_vocab_size=size)
    loaded = load_heads(tmp_path)
    assert loaded.heads.token_map is None
    assert any("token map is not used" in text for text in loaded.warnings)
    assert_drafts_like(loaded.heads, tensors)


@pytest.mark.parametrize("name", ["vllm", "tensorrt-llm", "modelopt", "peft", "mlc"])
@pytest.mark.parametrize("what", ["missing", "extra", "misshapen"])
def test_errors_use_the_files_own_names(
    name: str, what: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = write_heads(name, tmp_path / "heads", content(), tiny_model)
    layers = {"vllm": "blocks.1.layers.0", "tensorrt-llm": "medusa_heads.1.medusa_layers.0.linear"}
    prefixes = {
        "modelopt": "medusa_heads.",
        "peft": "base_model.model.medusa_head.",
        "mlc": "medusa_head.",
    }
    layer = layers.get(name) or prefixes[name] + "1.0.linear"
    (file,) = (
        file for file in folder.glob("*.safetensors") if f"{layer}.weight" in load_file(file)
    )
    tensors = load_file(file)
    weight = tensors.pop(f"{layer}.weight")
    key, message = {
        "missing": (None, rf"lacks .*{layer}\.weight"),
        "extra": (f"{layer}.scale", rf"no head layout has: {layer}\.scale"),
        "misshapen": (f"{layer}.weight", rf"{layer}\.weight is \(64, 63\), expected \(64, 64\)"),
    }[what]
    if what == "extra":
        tensors[f"{layer}.weight"] = weight
    if key is not None:
        tensors[key] = weight[:, 1:].contiguous()
    save_file(tensors, file)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text())["weight_map"]
        kept = {k: f for k, f in listed.items() if f != file.name}
        write_json(index, weight_map=kept | dict.fromkeys(tensors, file.name))
    with pytest.raises(HeadsError, match=message) as caught:
        load_heads(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read_all", [True, False])
@pytest.mark.parametrize("form", ["pickle", "copies", "safetensors"])
def test_tied_layers_are_read_and_named(form: str, read_all: bool, tmp_path: Path) -> None:
    """ModelOpt and FasterDecoding make `[ResBlock] * L`, which is one block L times."""
    tensors = content(num_layers=2)
    for kind in ("weight", "bias"):
        tensors[f"0.1.linear.{kind}"] = tensors[f"0.0.linear.{kind}"]
    path = tmp_path / ("heads.safetensors" if form == "safetensors" else "medusa_lm_head.pt")
    if form == "safetensors":  # It drops one of two tied tensors and says so in its metadata.
        names = [f"0.1.linear.{kind}" for kind in ("weight", "bias")]
        stored = {name: tensor for name, tensor in tensors.items() if name not in names}
        tied = {name: name.replace("0.1", "0.0") for name in names}
        save_file(stored, path, {"format": "pt", **tied})
    else:
        is_copied = form == "copies"
        torch.save({k: t.clone() if is_copied else t for k, t in tensors.items()}, path)
    loaded = load_heads(path, read_all=read_all)
    assert loaded.warnings == ("head 0: layers 0 and 1 are equal, as if trained as one",)
    for layer in (0, 1):
        weight = loaded.heads.heads[0].blocks[layer].weight
        if not read_all:
            array = loaded.heads.unread[f"block{layer}"][0].stored()
            weight = torch.from_numpy(array)
        assert torch.equal(weight, tensors["0.0.linear.weight"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_failed_trainings_are_refused(value: float, tmp_path: Path) -> None:
    tensors = content()
    tensors["1.1.weight"][3, 5] = value
    save_file(tensors, tmp_path / "heads.safetensors")
    with pytest.raises(HeadsError, match=r"1\.1\.weight holds NaN or infinity"):
        load_heads(tmp_path)
    unread = load_heads(tmp_path, read_all=False).heads.unread["unembedding"]
    with pytest.raises(ExportError, match=r"1\.1\.weight holds NaN or infinity"):
        unread[1].stored()
    tensors["1.0.linear.weight"][3, 5] = value
    save_file(tensors, tmp_path / "heads.safetensors")
    with pytest.raises(HeadsError, match=r"1\.0\.linear\.weight holds NaN or infinity"):
        load_heads(tmp_path, read_all=False)


def test_a_model_without_heads_is_named_as_one(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"holds no Medusa heads, only \d+ tensors of a model"):
        load_heads(tiny_model)
    for name in ("a", "b"):
        save_file(content(), tmp_path / f"{name}.safetensors")
    with pytest.raises(HeadsError, match=r"several files: a\.safetensors, b\.safetensors"):
        load_heads(tmp_path)


def test_old_adapters_with_modules_to_save_in_their_keys(tmp_path: Path) -> None:
    tensors, stored = content(), {}
    for key, tensor in tensors.items():
        stored[f"base_model.model.medusa_head.modules_to_save.default.{key}"] = tensor
        stored[f"base_model.model.medusa_head.original_module.{key}"] = torch.zeros_like(tensor)
    stored["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 2)
    torch.save(stored, tmp_path / "adapter_model.bin")
    loaded = load_heads(tmp_path)
    assert (loaded.format, loaded.adapter, loaded.backbone) == ("peft", tmp_path, None)
    assert len(loaded.others) == 1
    assert_drafts_like(loaded.heads, tensors)


def test_reading_leaves_the_files_alone(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_heads("modelopt", tmp_path / "heads", content(), tiny_model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load_heads(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(all_tensors(folder)) > 8
