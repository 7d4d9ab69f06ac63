"""Drawing a token from logits on the host, and the random numbers for it.

Every position of a sequence has one uniform number, which depends on the seed and the position
alone. Draws by inverse transform are then the same however the tokens were drafted: sampling with
a tree gives, token for token, what plain sampling with that seed gives.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

from medusa_trt.runtime.options import SamplingOptions


def uniforms_from_seed(seed: int | None, num_positions: int) -> NDArray[np.float64]:
    """(num_positions,) uniform numbers in [0, 1), one a position."""
    key = secrets.randbits(64) if seed is None else seed
    return np.random.Generator(np.random.Philox(key=key)).random(num_positions)


def sampling_threshold(scaled: NDArray[np.float32], options: SamplingOptions) -> float:
    """The least logit that top-k, top-p and min-p keep.

    Args:
        scaled: (vocab,) logits over temperature.
        options: the filters, applied in the order k, p, min.
    """
    highest = float(scaled.max())
    threshold = -np.inf
    if 0 < options.top_k < scaled.size:
        threshold = float(np.partition(scaled, -options.top_k)[-options.top_k])
    if options.top_p < 1:
        kept = np.sort(scaled[scaled >= threshold])[::-1].astype(np.float64)
        weights = np.exp(kept - highest)
        before = np.cumsum(weights) - weights
        threshold = float(kept[before < options.top_p * weights.sum()][-1])
    if options.min_p > 0:
        threshold = max(threshold, highest + float(np.log(options.min_p)))
    return threshold


def probabilities_from_logits(
    logits: NDArray[np.float32], options: SamplingOptions
) -> NDArray[np.float64]:
    """(vocab,) the filtered distribution at a temperature above 0."""
    scaled = logits / np.float32(options.temperature)
    threshold = sampling_threshold(scaled, options)
    weights = np.where(scaled >= threshold, np.exp(scaled - scaled.max(), dtype=np.float64), 0.0)
    total: NDArray[np.float64] = weights / weights.sum()
    return total


def token_from_logits(logits: NDArray[np.float32], options: SamplingOptions, uniform: float) -> int:
    """The token at `uniform` of the cumulative distribution; the argmax at temperature 0."""
    if options.temperature == 0:
        return int(logits.argmax())
    cumulative = np.cumsum(probabilities_from_logits(logits, options))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
