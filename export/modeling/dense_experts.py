"""Mixtures of experts as plain products, where every expert computes every token.

The experts of a token are known only when the graph runs. To compute only these, a graph would
gather whole weight matrices for each token. Instead all experts are computed, and the ones that a
token did not choose get the share zero. This is exact, and slower the more experts there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

_NAME = "medusa_dense"
_PLAIN = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
}


def dense_experts(
    module: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Implements transformers' experts interface.

    Source: Shazeer et al. 2017, "Outrageously large neural networks", equation 1.

    Args:
        module: a module that has `gate_up_proj` (experts, 2 * inner, hidden) and `down_proj`
            (experts, hidden, inner).
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, k) int64, the experts of each token.
        top_k_weights: (tokens, k), the share of each of them.

    Returns:
        (tokens, hidden).
    """
    up, down = module.gate_up_proj, module.down_proj
    assert isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor)
    num_experts = up.shape[0]
    zeros = top_k_weights.new_zeros(top_k_weights.shape[0], num_experts)
    shares = zeros.scatter(1, top_k_index, top_k_weights).to(hidden_states.dtype)
    outputs = torch.zeros_like(hidden_states)
    for expert in range(num_experts):
        inner = module._apply_gate(nn.functional.linear(hidden_states, up[expert]))  # type: ignore[operator]
        outputs = outputs + shares[:, expert, None] * nn.functional.linear(inner, down[expert])
    return outputs


def has_experts(model: PreTrainedModel) -> bool:
    """Whether some layer of a model is a mixture of experts."""
    return any(True for _ in _find_experts(model))


def find_experts_problem(model: PreTrainedModel) -> str | None:
    """Finds why `dense_experts` cannot replace this model's experts; None if it can."""
    for module in _find_experts(model):
        if not all(getattr(module, name, None) == value for name, value in _PLAIN.items()):
            return f"experts other than plain gated ones ({type(module).__name__})"
    return None


def _find_experts(model: PreTrainedModel) -> Iterator[nn.Module]:
    return (module for module in model.modules() if "Experts" in type(module).__name__)


@contextmanager
def replace_experts(model: PreTrainedModel) -> Iterator[None]:
    """Replaces the computation of a model's experts by `dense_experts` inside the block."""
    original = model.config._experts_implementation
    ALL_EXPERTS_FUNCTIONS.register(_NAME, dense_experts)
    model.config._experts_implementation = _NAME
    try:
        yield
    finally:
        model.config._experts_implementation = original
