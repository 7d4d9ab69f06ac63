"""The matrices that a plan chooses formats for: those that read one value are one site."""

import pytest
import torch
from support.model_families import FAMILIES
from support.tiny_models import random_model
from torch import nn

from medusa_trt.export.quantization.sites import sites_from_model


def test_the_sites_of_a_llama() -> None:
    sites = sites_from_model(random_model(FAMILIES["llama"]))
    kinds = ["qkv", "o", "gate_up", "down"]
    names = [f"layers.{layer}.{kind}" for layer in range(2) for kind in kinds]
    assert [site.name for site in sites] == [*names, "unembedding"]
    assert [site.layer for site in sites] == [0] * 4 + [1] * 4 + [None]
    qkv, _, gate_up, down = sites[4:8]
    attention = "model.layers.1.self_attn"
    assert qkv.modules == tuple(f"{attention}.{part}_proj" for part in "qkv")
    assert qkv.weights[0] == f"{attention}.q_proj.weight"
    assert qkv.shapes == ((64, 64), (64, 32), (64, 32)) and qkv.num_weights == 64 * 128
    assert gate_up.shapes == ((64, 96),) * 2 and down.shapes == ((96, 64),)
    assert [site.is_last for site in sites] == [False] * 8 + [True]


@pytest.mark.parametrize(
    "family", ["llama-tied-biased", "phi3", "gpt_neox", "gemma3", "starcoder2"]
)
def test_every_linear_layer_is_in_one_site_with_those_that_read_its_input(family: str) -> None:
    model = random_model(FAMILIES[family])
    sites = sites_from_model(model)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert sorted(path for site in sites for path in site.modules) == sorted(linears)
    assert len({site.name for site in sites}) == len(sites)
    read: dict[str, torch.Tensor] = {}
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0]}))
    with torch.no_grad():
        model(torch.arange(5)[None], use_cache=False)
    for site in sites:
        first = read[site.modules[0]]
        assert all(read[path] is first for path in site.modules)
        for path, shape in zip(site.modules, site.shapes, strict=True):
            assert shape == (linears[path].in_features, linears[path].out_features)
        assert site.is_last == (linears[site.modules[0]] is model.get_output_embeddings())
