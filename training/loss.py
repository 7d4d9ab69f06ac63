"""The loss of Medusa heads, Σ λ_k · CE_k, computed without storing the logits of all tokens."""

from typing import Any

import torch

from medusa_trt.training.data.targets import Targets

_MAX_CHUNK_ELEMENTS = 2**21


class _SoftCrossEntropy(torch.autograd.Function):
    """Σ_n Σ_s w_ns · (logsumexp(z_n) − z_n[c_ns]) of logits z = state · unembeddingᵀ + correction.

    The logits of a chunk of rows stay in the processor's cache, and their gradient is computed at
    once. The logits of all rows together would be written to memory and read several times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        unembedding: torch.Tensor,
        columns: torch.Tensor,
        weights: torch.Tensor,
        correction: torch.Tensor | None,
    ) -> torch.Tensor:
        total = state.new_zeros((), dtype=torch.float32)
        state_grad = torch.empty_like(state)
        wants_weight = ctx.needs_input_grad[1]
        weight_grad = torch.zeros_like(unembedding, dtype=torch.float32) if wants_weight else None
        size = max(1, _MAX_CHUNK_ELEMENTS // len(unembedding))
        for first in range(0, len(state), size):
            chunk = slice(first, first + size)
            logits = (state[chunk].to(unembedding.dtype) @ unembedding.T).float()
            if correction is not None:
                logits += correction
            normalizer = logits.logsumexp(-1, keepdim=True)
            picked = logits.gather(1, columns[chunk])
            total += (weights[chunk] * (normalizer - picked)).sum()
            mass = weights[chunk].sum(1, keepdim=True)
            grad = logits.sub_(normalizer).exp_().mul_(mass)
            grad.scatter_add_(1, columns[chunk], -weights[chunk])
            grad = grad.to(unembedding.dtype)
            state_grad[chunk] = grad @ unembedding
            if weight_grad is not None:
                weight_grad += grad.T @ state[chunk].to(unembedding.dtype)
        ctx.save_for_backward(state_grad, weight_grad)
        ctx.weight_dtype = unembedding.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        state_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        if weight_grad is not None:
            weight_grad = (weight_grad * scale).to(ctx.weight_dtype)
        return state_grad * scale, weight_grad, None, None, None


def compute_soft_cross_entropy(
    state: torch.Tensor,
    unembedding: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    correction: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums the cross-entropy of each row against a few weighted columns.

    Args:
        state: (N, hidden) output of a head.
        unembedding: (draft_vocab, hidden); logits are computed in its dtype.
        columns: (N, S) int64 columns of the target tokens.
        weights: (N, S) float32 weights of the target tokens.
        correction: (draft_vocab,) float32 to add to the logits of every row, see `sample_columns`.

    Returns:
        A float32 scalar.
    """
    loss: torch.Tensor = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        state, unembedding, columns, weights, correction
    )
    return loss


def compute_medusa_loss(
    states: torch.Tensor,
    unembeddings: list[torch.Tensor],
    targets: Targets,
    *,
    decay: float,
    num_sampled: int | None = None,
) -> torch.Tensor:
    """Computes Σ_k decay^k · CE_k (paper, equation 1), with means over the rows with a target.

    Args:
        states: (K, N, hidden) output of each head at each row.
        unembeddings: (draft_vocab, hidden) of each head.
        targets: those of the same rows and heads.
        decay: λ, 0.8 in the paper.
        num_sampled: estimate the normalizer from the targets and this many other tokens, drawn
            anew at each call; exact if None.
    """
    columns, correction = targets.columns, None
    if num_sampled is not None and num_sampled < len(unembeddings[0]):
        kept_columns, correction, places = sample_columns(
            targets, len(unembeddings[0]), num_sampled
        )
        unembeddings = [weight[kept_columns] for weight in unembeddings]
        columns = places[columns]
    counts = targets.exists.sum(0).clamp(min=1)
    total = states.new_zeros((), dtype=torch.float32)
    for k, unembedding in enumerate(unembeddings):
        loss = compute_soft_cross_entropy(
            states[k], unembedding, columns[:, k], targets.weights[:, k], correction
        )
        total = total + decay**k * loss / counts[k]
    return total


def sample_columns(
    targets: Targets, draft_vocab: int, num_sampled: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples the tokens of a softmax: all targets of a batch, and others without replacement.

    A drawn token stands for (others / drawn) tokens, so the logarithm of that is added to its
    logit: the normalizer is then right on average (Bengio and Senécal 2008, importance sampling).

    Returns:
        kept (M,) int64 columns; correction (M,) float32; places (draft_vocab,) int64, the index of
        each kept column in `kept`.
    """
    device = targets.columns.device
    is_target = torch.zeros(draft_vocab, dtype=torch.bool, device=device)
    is_target[targets.columns[targets.weights > 0]] = True
    is_target[0] = True  # padding of the targets points to column 0
    other_columns = (~is_target).nonzero()[:, 0]
    sampled_columns = other_columns[torch.randperm(len(other_columns), device=device)[:num_sampled]]
    kept_columns = torch.cat([is_target.nonzero()[:, 0], sampled_columns])
    correction = torch.zeros(len(kept_columns), device=device)
    if len(sampled_columns):
        correction[len(kept_columns) - len(sampled_columns) :] = torch.log(
            torch.tensor(len(other_columns) / len(sampled_columns))
        )
    places = torch.zeros(draft_vocab, dtype=torch.int64, device=device)
    places[kept_columns] = torch.arange(len(kept_columns), device=device)
    return kept_columns, correction, places
