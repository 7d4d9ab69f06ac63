"""Attention as products and a softmax, against loops in double precision."""

import math

import numpy as np
import pytest
import torch

from medusa_trt.export.modeling.grouped_attention import grouped_attention

SCALING, HEAD_DIM = 0.3, 8


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])
def test_each_query_is_the_weighted_sum_of_the_values_it_sees(
    num_heads: int, num_kv_heads: int, softcap: float | None, has_sinks: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, num_heads, 3, HEAD_DIM, generator=generator)
    key, value = torch.randn(2, 2, num_kv_heads, 5, HEAD_DIM, generator=generator)
    bias = torch.randn(2, 1, 3, 5, generator=generator)
    bias[torch.rand(bias.shape, generator=generator) < 0.3] = -1e30
    sinks = torch.randn(num_heads, generator=generator) if has_sinks else None
    found = grouped_attention(query, key, value, bias, SCALING, softcap=softcap, sinks=sinks)
    for batch, head, node in np.ndindex(2, num_heads, 3):
        group = head // (num_heads // num_kv_heads)
        weights = []
        for row in range(5):
            score = SCALING * float(torch.dot(query[batch, head, node], key[batch, group, row]))
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            weights.append(math.exp(score + float(bias[batch, 0, node, row])))
        total = sum(weights) + (0.0 if sinks is None else math.exp(float(sinks[head])))
        expected = sum(w * value[batch, group, row] for row, w in enumerate(weights)) / total
        torch.testing.assert_close(found[batch, head, node], expected, rtol=1e-5, atol=1e-6)
