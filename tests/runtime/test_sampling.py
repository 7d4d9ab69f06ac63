"""Sampling: filters against transformers, and random numbers."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import (
    probabilities_from_logits,
    uniforms_from_seed,
)

VOCAB_SIZE = 300


def sampling_options() -> st.SearchStrategy[SamplingOptions]:
    return st.builds(
        SamplingOptions,
        temperature=st.floats(0.3, 2.0),
        top_k=st.sampled_from([0, 1, 5, 50, 1000]),
        top_p=st.sampled_from([1.0, 0.95, 0.7, 0.1]),
        min_p=st.sampled_from([0.0, 0.02, 0.3]),
    )


def random_logits(seed: int, *shape: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return 3 * values


@settings(deadline=None)
@given(sampling_options(), st.integers(0, 10**6))
def test_the_distribution_is_that_of_transformers(options: SamplingOptions, seed: int) -> None:
    logits = random_logits(seed, VOCAB_SIZE)
    scores = torch.tensor(logits)[None]
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        warpers.append(MinPLogitsWarper(options.min_p))
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.int64), scores)
    expected = scores[0].double().softmax(-1).numpy()
    assert np.allclose(probabilities_from_logits(logits, options), expected, atol=1e-5)


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    assert np.array_equal(uniforms_from_seed(7, 10), uniforms_from_seed(7, 100)[:10])
    assert not np.array_equal(uniforms_from_seed(7, 10), uniforms_from_seed(8, 10))
    assert not np.array_equal(uniforms_from_seed(None, 10), uniforms_from_seed(None, 10))
