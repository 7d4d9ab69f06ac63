"""The reduce graph in double precision: the device draws what the host draws."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_trt.export.graphs.float_reduce import make_float_reduce
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits, token_from_logits

VOCAB_SIZE = 300

OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.floats(0.3, 2.0),
    top_k=st.sampled_from([0, 1, 5, 50, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.1]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    model = make_float_reduce(VOCAB_SIZE, 23)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


@settings(max_examples=60)
@given(OPTIONS, st.integers(0, 10**6))
def test_the_device_draws_what_the_host_draws(
    session: onnxruntime.InferenceSession, options: SamplingOptions, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(8, VOCAB_SIZE)).astype(np.float32)
    parents = rng.integers(0, 8, 8)
    candidates = rng.integers(0, VOCAB_SIZE, 8)
    uniforms = rng.random(8)
    num_sorted = min(options.top_k or (128 if options.top_p < 1 else 1), VOCAB_SIZE)
    sampled, covered, entropy, candidate_logprob = session.run(
        None,
        {
            "logits": logits,
            "candidates": candidates,
            "parent_rows": parents,
            "uniforms": uniforms,
            "temperature": np.array([options.temperature], np.float32),
            "num_sorted": np.array([num_sorted]),
            "cut_top_k": np.array([options.top_k > 0]),
            "top_p": np.array([options.top_p], np.float32),
            "min_p": np.array([options.min_p], np.float32),
        },
    )
    scaled = logits.astype(np.float64) / options.temperature
    logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    assert np.allclose(entropy, -(np.exp(logprobs) * logprobs).sum(-1), atol=1e-4)
    assert np.allclose(candidate_logprob, logprobs[parents, candidates], atol=1e-4)
    for row in range(8):
        if covered[row]:
            assert sampled[row] == token_from_logits(logits[row], options, uniforms[row])
        else:
            kept = (
                probabilities_from_logits(
                    logits[row],
                    SamplingOptions(temperature=options.temperature, top_p=options.top_p),
                )
                > 0
            ).sum()
            assert kept > num_sorted
