"""Random weights of a known shape."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_models import VOCAB_SIZE, llama_config

from medusa_trt.errors import ExportError
from medusa_trt.export.models.random_weights import random_base_model, random_heads
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import chain_tree


def test_random_weights_of_any_size_cost_no_memory() -> None:
    base = random_base_model("vicuna-33b", None, torch.float16)
    assert all(parameter.is_meta for parameter in base.model.parameters())
    weight = base.weights["model.layers.59.self_attn.q_proj.weight"]
    assert weight.sizes == (6656, 6656) and weight.stored().dtype == np.float16
    assert len({tensor.key for tensor in base.weights.values()}) == len(base.weights)
    first, second = random_heads(base.model.config, torch.float16).unread["unembedding"][:2]
    assert first.sizes == (32000, 6656) and first.key != second.key


def test_random_weights_make_a_bundle_of_the_shape(tiny_model: Path, tmp_path: Path) -> None:
    bundle = export_bundle(
        ExportOptions(
            model=str(tiny_model),
            output=tmp_path / "bundle",
            tree="chain-2",
            target="tensorrt",
            precision="int4",
            random_weights=True,
            num_layers=1,
            max_length=5000,
            draft_vocabulary=40,
        ),
        progress=lambda _: None,
    )
    assert bundle.manifest.model.num_layers == 1
    assert bundle.manifest.model.max_length == 5000, "longer than the model's own limit"
    assert bundle.manifest.model.vocab_size == VOCAB_SIZE
    assert bundle.manifest.heads is not None and bundle.manifest.heads.draft_vocab_size == 40
    assert not bundle.manifest.verified
    engine = OrtEngine(bundle, capacity=64, num_threads=1)
    outputs = engine.verify([[1, 2, 3]], chain_tree(2), [0], logits=True)
    assert outputs.logits is not None and np.isfinite(outputs.logits).all()
    assert outputs.logits.std() > 0
    engine.close()


def test_a_config_is_taken_by_its_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shape"
    llama_config().save_pretrained(folder)
    for place in (folder, folder / "config.json"):
        base = random_base_model(str(place), 1, torch.float32)
        assert base.source.name == "shape-1-layers-random"
        assert base.model.config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_weights": True}, "no shape is known for 'nothing': give one of vicuna-7b"),
        ({"random_weights": True, "model": "vicuna-7b", "num_layers": 99}, "vicuna-7b has 32"),
    ],
)
def test_mistakes_in_random_weights(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"model": "nothing", "target": "tensorrt"}
    with pytest.raises(ExportError, match=message):
        export_bundle(ExportOptions(**(values | changes)), lambda _: None)  # type: ignore[arg-type]
