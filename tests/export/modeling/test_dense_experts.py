"""Mixtures of experts as plain products, against the experts that each token chose."""

import pytest
import torch
from support.model_families import FAMILIES, config, weighted_model
from support.tiny_models import random_model
from torch.nn.functional import silu

from medusa_trt.export.modeling.dense_experts import (
    dense_experts,
    find_experts_problem,
    has_experts,
    replace_experts,
)

TOKENS = torch.arange(30)[None] * 7


def test_each_token_is_computed_by_the_experts_that_it_chose() -> None:
    experts = random_model(FAMILIES["mixtral"]).model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 64, generator=generator)
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(5)])
    shares = torch.rand(5, 2, generator=generator)
    with torch.no_grad():
        found = dense_experts(experts, hidden, chosen, shares)
        for token in range(5):
            expected = torch.zeros(64)
            for expert, share in zip(chosen[token].tolist(), shares[token], strict=True):
                gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
                expected += share * (experts.down_proj[expert] @ (silu(gate) * up))
            torch.testing.assert_close(found[token], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_model_computes_the_same_by_them_and_gets_its_own_back(family: str) -> None:
    model = weighted_model(FAMILIES[family])
    assert has_experts(model) and find_experts_problem(model) is None
    own = model.config._experts_implementation
    with torch.no_grad():
        expected = model(TOKENS).logits
        with replace_experts(model):
            assert model.config._experts_implementation != own
            found = model(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZeroDivisionError), replace_experts(model):
        raise ZeroDivisionError
    assert model.config._experts_implementation == own


def test_experts_of_another_kind_are_named() -> None:
    problem = find_experts_problem(random_model(config("gpt_oss")))
    assert problem == "experts other than plain gated ones (GptOssExperts)"
    llama = random_model(FAMILIES["llama"])
    assert not has_experts(llama) and find_experts_problem(llama) is None
