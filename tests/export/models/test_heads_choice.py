"""`--heads` and `--model` in every shape: what is exported, and with which backbone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints.head_files import Tensors, modelopt, num_heads, vllm, write_heads
from support.reference.heads import head_logits
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors, save_tiny_model
from transformers import PhiConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from medusa_trt.errors import ExportError
from medusa_trt.export.heads.loading import holds_heads
from medusa_trt.export.models.base_model import load_base_model
from medusa_trt.export.models.heads_choice import choose_heads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.preparation import MIN_TOP_K
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle

MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])


def content(**options: Any) -> Tensors:
    return head_tensors(**({"num_heads": 2, "num_layers": 1} | options))


def export(model: Path, heads: Path | str | None, output: Path) -> tuple[Bundle, list[str]]:
    told: list[str] = []
    options = ExportOptions(
        model=str(model), heads=heads, tree="chain-2", precision="fp32", output=output
    )
    return export_bundle(options, told.append), told


def assert_drafts(bundle: Bundle, tensors: Tensors, weights: Tensors) -> None:
    """Runs the exported heads and compares their ids, rank by rank, with the reference."""
    hidden = torch.randn(4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(2))
    roots = torch.tensor([0, 7, 31, VOCAB_SIZE - 1])
    session = ort.InferenceSession(bundle.path / names.GRAPH_FILES["heads"])
    fed = {names.HIDDEN: hidden.numpy(), names.ROOT_IDS: roots.numpy()}
    wanted = [each.name for each in session.get_inputs()]
    assert (names.ROOT_IDS in wanted) == bundle.manifest.heads_read_root
    (drafted,) = session.run([names.DRAFT_IDS], {name: fed[name] for name in wanted})
    bias = weights.get("lm_head.bias")
    logits = head_logits(
        {key: tensor.numpy() for key, tensor in tensors.items()},
        weights["lm_head.weight"].double().numpy(),
        hidden.double().numpy(),
        None if bias is None else bias.double().numpy(),
        weights["model.embed_tokens.weight"][roots].double().numpy(),
    )
    best = np.argsort(-logits, axis=-1)[..., :MIN_TOP_K].swapaxes(0, 1)
    expected = MAP.numpy()[best] if "token_map" in tensors else best
    assert drafted.shape == (4, num_heads(tensors), MIN_TOP_K)
    assert np.array_equal(drafted, expected)


def test_a_truncated_vocabulary_of_vllm_is_exported(tiny_model: Path, tmp_path: Path) -> None:
    tensors = content(vocab_size=len(MAP)) | {"token_map": MAP}
    folder = tmp_path / "heads"
    folder.mkdir()
    vllm(folder, tensors, tiny_model, vocab_size=VOCAB_SIZE)
    bundle, told = export(tiny_model, folder, tmp_path / "bundle")
    assert any(f"2 heads in vllm format from {folder}" in line for line in told)
    assert bundle.manifest.require_heads("the test").draft_vocab_size == len(MAP)
    assert_drafts(bundle, tensors, load_file(tiny_model / "model.safetensors"))


def embedding_offset(bundle: Bundle, graph: str) -> str:
    """Where in the file of weights the matrix lies that the graph's one large Gather reads."""
    model = onnx.load(bundle.graph_path(graph), load_external_data=False).graph
    gathered = {node.input[0] for node in model.node if node.op_type == "Gather"}
    (found,) = (
        str({entry.key: entry.value for entry in tensor.external_data}["offset"])
        for tensor in model.initializer
        if tensor.name in gathered and tuple(tensor.dims) == (VOCAB_SIZE, HIDDEN_SIZE)
    )
    return found


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_read_the_root_are_exported(
    truncated: bool, dtype: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    """They read the backbone's own embedding, which the bundle holds once."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    tensors = content(vocab_size=None) | ({"token_map": MAP} if truncated else {})
    generator = torch.Generator().manual_seed(5)
    for head in range(num_heads(tensors)):
        weight = torch.randn(HIDDEN_SIZE, 2 * HIDDEN_SIZE, generator=generator) / 8
        tensors |= {
            f"{head}.root_map.weight": weight,
            f"{head}.root_map.bias": weight[:, 0].clone(),
        }
    save_file(tensors, tmp_path / "heads.safetensors")
    bundle, _ = export(model, tmp_path / "heads.safetensors", tmp_path / "bundle")
    assert bundle.manifest.heads_read_root
    assert_drafts(bundle, tensors, weights)
    assert embedding_offset(bundle, "heads") == embedding_offset(bundle, "verify")


def test_shared_heads_add_the_bias_of_the_backbones_logits(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    model = save_tiny_model(tmp_path / "phi", config)
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    weights["lm_head.bias"] = 3 * torch.randn(VOCAB_SIZE, generator=generator)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    tensors = content(vocab_size=None) | {"token_map": MAP}
    save_file(tensors, tmp_path / "heads.safetensors")
    bundle, _ = export(model, tmp_path / "heads.safetensors", tmp_path / "bundle")
    assert_drafts(bundle, tensors, weights)


def test_a_merged_checkpoint_is_exported_with_its_own_backbone(
    tiny_model: Path, tmp_path: Path
) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=5)
    merged = write_heads("fasterdecoding-merged", tmp_path / "merged", content(), tuned)
    assert holds_heads(merged) and not holds_heads(tiny_model)
    bundle, told = export(merged, None, tmp_path / "bundle")
    assert any("2 heads in fasterdecoding-merged format" in line for line in told)
    assert not any("warning" in line for line in told)
    assert_drafts(bundle, content(), load_file(tuned / "model.safetensors"))

    same = choose_heads(source_from_name(str(merged)), merged)
    assert same.warnings == ()
    other = choose_heads(source_from_name(str(tiny_model)), merged)
    (warning,) = other.warnings
    assert f"--model {merged} uses both" in warning
    loaded = load_base_model(source_from_name(str(merged))).model.state_dict()
    expected = AutoModelForCausalLM.from_pretrained(tuned).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_backbone_that_lacks_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks weights of the model: model\.layers\.1\.mlp\.up"):
        load_base_model(source_from_name(str(folder)))


def test_a_quantized_backbone_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    modelopt(folder, content(), tiny_model)
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    shard = found["weight_map"]["lm_head.weight"]
    found["weight_map"]["model.layers.0.mlp.up_proj.weight_scale"] = shard
    index.write_text(json.dumps(found))
    with pytest.raises(ExportError, match=r"quantized with scales: give the full-precision model"):
        choose_heads(source_from_name(str(folder)), None)
    loaded = choose_heads(source_from_name(str(tiny_model)), folder).loaded
    assert loaded is not None and loaded.heads.num_heads == 2
    assert choose_heads(source_from_name(str(folder)), "none").loaded is None
