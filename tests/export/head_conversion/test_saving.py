"""Conversions of heads: the folders that are written, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.checkpoints.conversions import (
    MAP,
    Block,
    convert,
    make_content,
    save_heads_file,
)
from support.checkpoints.head_files import all_tensors, config_of
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors, llama_config, save_tiny_model
from torch import nn
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from medusa_trt.errors import ExportError, HeadsError, MedusaError
from medusa_trt.export.head_conversion import saving
from medusa_trt.export.heads.loading import load_heads


def test_vllm_needs_the_vocabulary_of_truncated_heads(tiny_model: Path, tmp_path: Path) -> None:
    tensors = head_tensors(num_heads=2, num_layers=1, vocab_size=len(MAP)) | {"token_map": MAP}
    source = save_heads_file(tmp_path / "heads.safetensors", tensors)
    with pytest.raises(HeadsError, match=r"vllm states the backbone's vocabulary.*: give --model"):
        convert(source, "vllm", tmp_path / "output")
    output = convert(source, "vllm", tmp_path / "output", model=tiny_model)
    assert config_of(output)["vocab_size"] == VOCAB_SIZE
    # The source's config will do too.
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 400}))
    output = convert(source, "vllm", tmp_path / "second")
    assert config_of(output)["vocab_size"] == 400
    assert config_of(output)["truncated_vocab_size"] == len(MAP)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_type_bit_by_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in make_content().items()}
    source = save_heads_file(tmp_path / "heads.safetensors", tensors)
    output = convert(source, "medusa-trt", tmp_path / "output")
    found = all_tensors(output)
    assert all(found[key].dtype == dtype for key in tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    wide = convert(source, "medusa-trt", tmp_path / "wide", dtype="float32")
    assert all(t.dtype == torch.float32 for t in all_tensors(wide).values())


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    tensors = make_content()
    tensors["0.0.linear.bias"][3] = 1e5
    source = save_heads_file(tmp_path / "heads.safetensors", tensors)
    with pytest.raises(HeadsError, match=r"0\.0\.linear\.bias has values too large for torch\.fl"):
        convert(source, "medusa-trt", tmp_path / "output", dtype="float16")
    with pytest.raises(HeadsError, match=r"unknown type 'int8': give one of float32, float16"):
        convert(source, "medusa-trt", tmp_path / "output", dtype="int8")
    with pytest.raises(HeadsError, match=r"unknown head format 'v3': give one of medusa-trt, "):
        convert(source, "v3", tmp_path / "output")


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("fasterdecoding-merged", "needs the whole model too: give it with --model"),
        ("modelopt", "needs the whole model too"),
        ("rtp-llm", "needs the model's config too"),
        ("tgi-v1", "names the backbone, and nothing here does: give --model"),
    ],
)
def test_formats_that_need_the_backbone_say_so(to: str, message: str, tmp_path: Path) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    with pytest.raises(HeadsError, match=f"{to}.*{message}"):
        convert(source, to, tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["heads.safetensors"]


@pytest.mark.parametrize("to", ["fasterdecoding-merged", "modelopt"])
def test_a_merged_checkpoint_is_a_model_that_transformers_loads(
    to: str, tiny_model: Path, tmp_path: Path
) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    output = convert(source, to, tmp_path / "output", model=tiny_model)
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (output / "tokenizer.json").is_file()
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == all_tensors(output).keys()
    # The backbone comes along by itself from one merged format to the other.
    other = {"modelopt": "fasterdecoding-merged", "fasterdecoding-merged": "modelopt"}[to]
    second = convert(output, other, tmp_path / "second")
    assert load_heads(second).format == other
    assert AutoModelForCausalLM.from_pretrained(second).state_dict().keys() == before.keys()


def test_a_backbone_left_behind_is_mentioned(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    merged = convert(source, "fasterdecoding-merged", tmp_path / "merged", model=tiny_model)
    output = convert(merged, "fasterdecoding", tmp_path / "output")
    assert f"the backbone beside the heads in {merged} stays behind" in capsys.readouterr().out
    assert config_of(output)["base_model_name_or_path"] == str(merged)


def test_heads_of_another_size_than_the_backbone_are_refused(tmp_path: Path) -> None:
    wide = save_tiny_model(tmp_path / "wide", llama_config(hidden_size=32, vocab_size=VOCAB_SIZE))
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    with pytest.raises(HeadsError, match="size 64, the backbone has 32"):
        convert(source, "fasterdecoding-merged", tmp_path / "output", model=wide)


def test_existing_files_are_not_lost(tmp_path: Path) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    output = convert(source, "medusa-trt", tmp_path / "output")
    with pytest.raises(HeadsError, match=r"output exists: give another --output, or --overwrite"):
        convert(source, "vllm", output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(HeadsError, match=r"holds other files \(notes\.txt\)"):
        convert(source, "medusa-trt", output, overwrite=True)
    (output / "notes.txt").unlink()
    changed = make_content(seed=9)
    convert(save_heads_file(source, changed), "medusa-trt", output, overwrite=True)
    assert torch.equal(all_tensors(output)["0.1.weight"], changed["0.1.weight"])
    with pytest.raises(HeadsError, match=r"output is the source"):
        convert(output, "medusa-trt", output, overwrite=True)
    with pytest.raises(HeadsError, match="is not a folder"):
        convert(source, "medusa-trt", source, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.safetensors", "output"]


def test_a_failure_while_writing_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    output = convert(source, "medusa-trt", tmp_path / "output")
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def fails(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "_write_json", fails)
    with pytest.raises(ExportError, match="no space left"):
        convert(source, "medusa-trt", output, overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.safetensors", "output"]


def test_a_quantized_backbone_is_not_taken_for_a_whole_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    merged = convert(source, "modelopt", tmp_path / "merged", model=tiny_model)
    index = merged / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["model.layers.0.mlp.up_proj.weight_scale"] = "model-backbone.safetensors"
    index.write_text(json.dumps(found))
    with pytest.raises(MedusaError, match="is quantized with scales: give the full-precision"):
        convert(merged, "fasterdecoding-merged", tmp_path / "output")
    convert(merged, "fasterdecoding", tmp_path / "heads", model=tiny_model)


def test_configs_are_what_the_tools_look_for(tiny_model: Path, tmp_path: Path) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    vllm = config_of(convert(source, "vllm", tmp_path / "vllm"))
    # vLLM renames every key with "num" and "heads" or "layers" in it, so there is one of each.
    assert [key for key in vllm if "num" in key] == ["num_heads", "num_hidden_layers"]
    tgi = config_of(convert(source, "tgi-v1", tmp_path / "tgi", model=tiny_model))
    # text-generation-inference takes a config with `architectures` for another kind of model.
    assert {*tgi} == {"base_model_name_or_path", "medusa_num_heads", "medusa_num_layers"}


def test_peft_itself_loads_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content())
    folder = convert(source, "peft", tmp_path / "adapter", model=tiny_model)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    unembeddings = [nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False) for _ in range(2)]
    model.medusa_head = nn.Sequential(*(nn.Sequential(Block(), part) for part in unembeddings))
    adapted = PeftModel.from_pretrained(model, str(folder))
    found = adapted.state_dict()
    prefix = "base_model.model.medusa_head.modules_to_save.default."
    for key, tensor in make_content().items():
        assert torch.equal(found[prefix + key], tensor)
