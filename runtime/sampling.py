"""Sampling of a token from logits on the host, and its random numbers.

Every position of a sequence has one uniform number, which depends only on the seed and the
position. A token is drawn by inverse transform, so the drafts do not change it: sampling with a
tree gives the same tokens as plain sampling with this seed.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.options import SamplingOptions


def uniforms_from_seed(seed: int | None, num_positions: int) -> NDArray[np.float64]:
    """Draws (num_positions,) uniform numbers in [0, 1), one for each position."""
    key = secrets.randbits(64) if seed is None else seed
    return np.random.Generator(np.random.Philox(key=key)).random(num_positions)


def find_threshold(scaled: NDArray[np.float32], options: SamplingOptions) -> float:
    """Finds the smallest logit that top-k, top-p and min-p keep.

    Args:
        scaled: (vocab,) logits divided by the temperature.
        options: the filters, applied in the order k, p, min.
    """
    highest = float(scaled.max())
    threshold = -np.inf
    if 0 < options.top_k < scaled.size:
        threshold = float(np.partition(scaled, -options.top_k)[-options.top_k])
    if options.top_p < 1:
        kept_logits = np.sort(scaled[scaled >= threshold])[::-1].astype(np.float64)
        weights = np.exp(kept_logits - highest)
        before = np.cumsum(weights) - weights
        threshold = float(kept_logits[before < options.top_p * weights.sum()][-1])
    if options.min_p > 0:
        threshold = max(threshold, highest + float(np.log(options.min_p)))
    return threshold


def probabilities_from_logits(
    logits: NDArray[np.float32], options: SamplingOptions
) -> NDArray[np.float64]:
    """Computes the filtered distribution (vocab,) at a temperature above 0."""
    scaled = logits / np.float32(options.temperature)
    threshold = find_threshold(scaled, options)
    weights = np.where(scaled >= threshold, np.exp(scaled - scaled.max(), dtype=np.float64), 0.0)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def token_from_logits(logits: NDArray[np.float32], options: SamplingOptions, uniform: float) -> int:
    """Draws the token at `uniform` in the cumulative distribution; the argmax at temperature 0."""
    if options.temperature == 0:
        return int(logits.argmax())
    cumulative = np.cumsum(probabilities_from_logits(logits, options))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
