"""`--heads` and `--model` in every shape: what is exported, and with which backbone."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.checkpoints.head_files import WRITERS, Tensors, modelopt, num_heads, vllm
from support.reference.heads import head_logits
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, head_tensors, save_tiny_model
from torch import nn
from transformers import PhiConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from medusa_trt.errors import ExportError, HeadsError
from medusa_trt.export.heads.loading import holds_heads, load_heads
from medusa_trt.export.heads.medusa_heads import MedusaHead
from medusa_trt.export.models.base_model import load_base_model
from medusa_trt.export.models.heads_choice import choose_heads
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.export.preparation import MIN_TOP_K, parts_from_options
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.bundle import Bundle

MAP = torch.tensor([3, 299, 0, 17, 5, 21, 8, 30, 11, 2, 26, 14])


def content(**options: Any) -> Tensors:
    return head_tensors(**({"num_heads": 2, "num_layers": 1} | options))


def written(name: str, folder: Path, tensors: Tensors, model: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder, tensors, model)
    return folder


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
    merged = written("fasterdecoding-merged", tmp_path / "merged", content(), tuned)
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


class Block(nn.Module):
    """A residual block with FasterDecoding's names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)


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
    chosen = choose_heads(source_from_name(str(tiny_model)), folder).source
    save_file({name: t for name, t in stored.items() if name != key}, file)
    with pytest.raises(HeadsError, match=r"does not fit: it lacks .*q_proj\.lora_A"):
        load_base_model(chosen)
    save_file(stored | {key.replace("q_proj", "k_proj"): stored[key].clone()}, file)
    with pytest.raises(HeadsError, match=r"does not fit: it has .*k_proj\.lora_A"):
        load_base_model(chosen)
    save_file(stored | {key: stored[key][:, 1:].contiguous()}, file)
    with pytest.raises(HeadsError, match=r"does not fit the model: .*size mismatch"):
        load_base_model(chosen)


class Hub:
    """A hub of local folders in place of `snapshot_download`, which records what is asked of it."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories = repositories
        self.cache = cache
        self.files: set[str] = set()

    def __call__(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        if repo_id not in self.repositories:
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot reach\n{repo_id}")
        folder = self.cache / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.repositories[repo_id].iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
                self.files.add(file.name)
        return str(folder)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("vllm", {"config.json", "model.safetensors"}),
        ("fasterdecoding", {"config.json", "medusa_lm_head.pt"}),
        ("peft", {"adapter_config.json", "adapter_model.safetensors"}),
    ],
)
def test_heads_on_the_hub(
    name: str,
    files: set[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = written(name, tmp_path / "remote", content(), tiny_model)
    (folder / "README.md").write_text("not needed")
    hub = Hub({"owner/heads": folder}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    loaded = load_heads("owner/heads")
    assert (loaded.format, loaded.heads.num_heads, hub.files) == (name, 2, files)
    with pytest.raises(
        ExportError, match=r"'owner/nothing' is no local path and cannot .* hub: cannot reach o"
    ):
        load_heads("owner/nothing")


def test_of_a_merged_checkpoint_on_the_hub_only_the_heads_are_downloaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written("modelopt", tmp_path / "remote", content(), tiny_model)
    named = tmp_path / "odd"
    named.mkdir()
    save_file(content(), named / "odd_name.safetensors")
    hub = Hub({"owner/merged": folder, "owner/odd": named}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert holds_heads("owner/merged") and load_heads("owner/merged").heads.num_heads == 2
    assert "model-00002-of-00002.safetensors" in hub.files
    assert "model-00001-of-00002.safetensors" not in hub.files
    assert load_heads("owner/odd").heads.num_heads == 2
    choice = choose_heads(source_from_name("owner/merged"), None)
    assert (choice.source.location, choice.warnings) == ("owner/merged", ())


def test_a_local_folder_wins_over_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("tgi-v1", tmp_path / "owner" / "heads", content(), tiny_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub({}, tmp_path))
    assert load_heads("owner/heads").format == "tgi-v1"
