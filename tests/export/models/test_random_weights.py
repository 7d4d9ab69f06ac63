"""Random weights of a known shape."""

import numpy as np
import torch

from medusa_trt.export.models.random_weights import random_base_model, random_heads


def test_random_weights_of_any_size_cost_no_memory() -> None:
    base = random_base_model("vicuna-33b", None, torch.float16)
    assert all(parameter.is_meta for parameter in base.model.parameters())
    weight = base.weights["model.layers.59.self_attn.q_proj.weight"]
    assert weight.sizes == (6656, 6656) and weight.stored().dtype == np.float16
    assert len({tensor.key for tensor in base.weights.values()}) == len(base.weights)
    first, second = random_heads(base.model.config, torch.float16).unread["unembedding"][:2]
    assert first.sizes == (32000, 6656) and first.key != second.key
