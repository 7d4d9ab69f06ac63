"""What conversion makes of heads that a format does not hold as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.checkpoint_tensors import heads_from_tensors, tensors
from support.checkpoints.conversions import (
    MAP,
    convert,
    make_content,
    read_unembedding,
    save_heads_file,
)
from support.checkpoints.head_files import WRITERS, all_tensors, config_of
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, save_tiny_model
from transformers import PhiConfig

from medusa_trt.errors import HeadsError
from medusa_trt.export.head_conversion.fitting import fit_heads
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.heads.loading import load_heads


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "medusa-trt"])
def test_what_a_format_cannot_hold_is_named(to: str) -> None:
    def refuse(message: str, **options: Any) -> None:
        heads = heads_from_tensors(tensors(**{"own": True} | options), "heads")
        with pytest.raises(HeadsError, match=f"^{to} cannot hold {message}"):
            fit_heads(heads, FORMATS[to], None)

    refuse("a projection after the blocks: convert --to medusa-trt$", projection=True)
    refuse("heads that read the root token's .*: convert --to medusa-trt$", root_map=True)
    if to != "vllm":
        refuse("a truncated vocabulary .*: convert --to medusa-trt or vllm$", token_map=True)
    if to == "tgi-v2":
        refuse("2 layers a head: ", own=False, num_layers=2)


@pytest.mark.parametrize("own", [True, False])
def test_heads_that_a_format_holds_stay_as_they_are(own: bool) -> None:
    options = {"own": own, "projection": True, "root_map": True, "token_map": True, "bias": False}
    heads = heads_from_tensors(tensors(**options), "heads")
    assert fit_heads(heads, FORMATS["medusa-trt"], None) is heads


@pytest.mark.parametrize("to", ["fasterdecoding", "tensorrt-llm", "mlc"])
def test_absent_biases_become_zeros_where_tools_read_them(
    to: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = {key: t for key, t in make_content().items() if not key.endswith("bias")}
    source = save_heads_file(tmp_path / "heads.safetensors", found)
    output = convert(source, to, tmp_path / "output", model=tiny_model)
    biases = {key: t for key, t in all_tensors(output).items() if key.endswith("bias")}
    assert len(biases) == 2 and not any(bias.any() for bias in biases.values())
    vllm = convert(source, "vllm", tmp_path / "vllm")
    assert config_of(vllm)["medusa_fc_bias"] is False
    assert not any(key.endswith("bias") for key in all_tensors(vllm))


@pytest.mark.parametrize("to", ["fasterdecoding", "tgi-v1", "tensorrt-llm", "mlc", "peft"])
def test_a_shared_unembedding_is_copied_from_the_backbone(
    to: str, tiny_model: Path, tmp_path: Path
) -> None:
    source = save_heads_file(tmp_path / "heads.safetensors", make_content(own=False))
    with pytest.raises(HeadsError, match=rf"{to} holds unembeddings and these .* with --model"):
        convert(source, to, tmp_path / "output")
    output = convert(source, to, tmp_path / "output", model=tiny_model)
    own = make_content(own=False) | {
        f"{h}.1.weight": read_unembedding(tiny_model) for h in range(2)
    }
    expected = tmp_path / "expected"
    expected.mkdir()
    WRITERS[to](expected, own, tiny_model)
    found, wanted = all_tensors(output), all_tensors(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    # And back: what equals the backbone's need not be stored.
    back = convert(output, "shared", tmp_path / "back", model=tiny_model)
    assert all_tensors(back).keys() == make_content(own=False).keys()
    assert config_of(back)["version"] == "2"


@pytest.mark.parametrize("truncated", [False, True])
def test_vllm_gets_the_backbones_unembedding_once(
    truncated: bool, tiny_model: Path, tmp_path: Path
) -> None:
    shared = make_content(own=False) | ({"token_map": MAP} if truncated else {})
    source = save_heads_file(tmp_path / "heads.safetensors", shared)
    output = convert(source, "vllm", tmp_path / "output", model=tiny_model)
    found, config = all_tensors(output), config_of(output)
    rows = read_unembedding(tiny_model)
    assert torch.equal(found["lm_head.weight"], rows[MAP] if truncated else rows)
    assert not any(key.startswith("lm_heads") for key in found)
    assert ("token_map" in found) == truncated
    assert config["original_lm_head"] is True and config["vocab_size"] == VOCAB_SIZE
    assert config["truncated_vocab_size"] == (len(MAP) if truncated else VOCAB_SIZE)
    again = load_heads(output)
    assert (again.facts.unembedding, again.warnings) == ("common", ())


@pytest.mark.parametrize("to", ["shared", "tgi-v2"])
def test_other_unembeddings_than_the_backbones_are_not_dropped(
    to: str, tiny_model: Path, tmp_path: Path
) -> None:
    own = make_content() | {"0.1.weight": read_unembedding(tiny_model)}
    source = save_heads_file(tmp_path / "heads.safetensors", own)
    with pytest.raises(HeadsError, match=r"give --model, to see whether they are the backbone's"):
        convert(source, to, tmp_path / "output")
    with pytest.raises(HeadsError, match=rf"{to} holds no unembeddings .* \(heads 1 differ\)"):
        convert(source, to, tmp_path / "output", model=tiny_model)
    assert not (tmp_path / "output").exists()


def test_a_bias_on_the_backbones_logits_is_refused_by_name(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    folder = save_tiny_model(tmp_path / "phi", config)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"] = torch.arange(VOCAB_SIZE) / 10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    source = save_heads_file(tmp_path / "heads.safetensors", make_content(own=False))
    with pytest.raises(HeadsError, match=r"tgi-v1 cannot hold the bias .* adds to its logits"):
        convert(source, "tgi-v1", tmp_path / "output", model=folder)
