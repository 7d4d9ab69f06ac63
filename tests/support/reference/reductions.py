"""Reductions of logits, row by row on the host."""

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.engines.base import Reductions, TokenIds
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import token_from_logits
from medusa_trt.tree_configs import MedusaTree


def reductions_from_logits(
    logits: NDArray[np.float32],
    input_ids: TokenIds,
    tree: MedusaTree,
    sampling: SamplingOptions,
    uniforms: NDArray[np.float64],
) -> Reductions:
    """See `Engine.reduce`.

    Args:
        logits: (B, R, vocab).
        input_ids: (B, R).
        tree: R nodes.
        sampling: at a temperature above 0.
        uniforms: (B, R) in [0, 1).
    """
    scaled = logits / np.float32(sampling.temperature)
    scaled = scaled - scaled.max(-1, keepdims=True)
    logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    probs = np.exp(logprobs)
    parents = np.maximum(tree.parents, 0)
    node_logprob = np.take_along_axis(logprobs[:, parents], np.asarray(input_ids)[..., None], -1)
    sampled = [
        [token_from_logits(row, sampling, number) for row, number in zip(*pair, strict=True)]
        for pair in zip(logits, uniforms, strict=True)
    ]
    return Reductions(
        sampled=np.array(sampled, np.int64),
        entropy=-np.where(probs > 0, probs * logprobs, 0).sum(-1),
        candidate_logprob=node_logprob[..., 0],
    )
