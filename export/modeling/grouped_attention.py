"""Attention as products and a softmax, where no attention operator can be used."""

import torch


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    *,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attends with the query heads of a key-value head as rows of one product.

    Keys and values are not repeated this way.

    Source: Ainslie et al. 2023, "GQA"; soft-capping, Gemma Team 2024, "Gemma 2", section 2; sinks,
    OpenAI 2025, "gpt-oss-120b & gpt-oss-20b model card", section 2.2.

    Args:
        query: (B, heads, T, head_dim).
        key: (B, kv_heads, L, head_dim).
        value: (B, kv_heads, L, head_dim).
        bias: (B, 1, T, L) additive mask.
        scaling: factor of the scores.
        softcap: replaces scaled scores x by softcap * tanh(x / softcap) before the mask is added.
        sinks: (heads,) a score of each head that joins the sum of its weights.

    Returns:
        (B, heads, T, head_dim).
    """
    batch, num_heads, num_nodes, head_dim = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    folded = (query * scaling).reshape(batch, num_kv_heads, group * num_nodes, head_dim)
    scores = (folded @ key.transpose(2, 3)).reshape(batch, num_kv_heads, group, num_nodes, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked = (scores + bias[:, :, None]).float()
    if sinks is not None:
        column = sinks.float().reshape(1, num_kv_heads, group, 1, 1)
        column = column.expand(batch, num_kv_heads, group, num_nodes, 1)
        masked = torch.cat([column, masked], -1)
    weights = torch.softmax(masked, -1).to(value.dtype)
    if sinks is not None:
        weights = weights[..., 1:]
    flat = weights.reshape(batch, num_kv_heads, group * num_nodes, -1)
    return (flat @ value).reshape(batch, num_heads, num_nodes, head_dim)
