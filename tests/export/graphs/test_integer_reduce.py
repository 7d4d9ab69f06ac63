"""The reductions in integers: against the host, at the edges of the distribution, row by row."""

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from support.reference.reductions import reductions_from_logits

from medusa_trt.export.graphs.integer_reduce import make_integer_reduce
from medusa_trt.runtime.engines.reduce_tensors import OUTPUTS, SHARE_BITS
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits, uniforms_from_seed
from medusa_trt.tree_configs import chain_tree

NUM_SORTED = 64


@cache
def session(vocab_size: int) -> onnxruntime.InferenceSession:
    model = make_integer_reduce(vocab_size, 21, num_sorted=NUM_SORTED)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def reduced(
    logits: NDArray[np.float32],
    options: SamplingOptions,
    uniforms: NDArray[np.float64],
    candidates: NDArray[np.int64] | None = None,
    parents: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[np.generic]]:
    num_rows, vocab_size = logits.shape
    outputs = session(vocab_size).run(
        list(OUTPUTS),
        {
            "logits": logits,
            "candidates": np.zeros(num_rows, np.int64) if candidates is None else candidates,
            "parent_rows": np.arange(num_rows) if parents is None else parents,
            "uniforms": (uniforms * 2**SHARE_BITS).astype(np.int64),
            "temperature": np.array([options.temperature], np.float32),
            "top_k": np.array([options.top_k if options.top_k < vocab_size else 0]),
            "top_p": np.array([options.top_p], np.float32),
            "min_p": np.array([options.min_p], np.float32),
        },
    )
    return dict(zip(OUTPUTS, outputs, strict=True))


def random_logits(seed: int, *shape: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return 3 * values


OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.floats(0.3, 2.0),
    top_k=st.sampled_from([0, 1, 5, 64, 65, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.1]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)


@settings(max_examples=80)
@given(OPTIONS, st.sampled_from([2, 63, 300, 2000]), st.integers(0, 10**6))
def test_it_draws_what_the_host_draws(options: SamplingOptions, vocab_size: int, seed: int) -> None:
    tree = chain_tree(7)
    rng = np.random.default_rng(seed)
    logits, uniforms = random_logits(seed, 8, vocab_size), rng.random(8)
    candidates = rng.integers(0, vocab_size, 8)
    found = reduced(logits, options, uniforms, candidates, np.maximum(tree.parents, 0))
    expected = reductions_from_logits(logits[None], candidates[None], tree, options, uniforms[None])
    assert np.allclose(found["entropy"], expected.entropy[0], atol=1e-4)
    assert np.allclose(found["candidate_logprob"], expected.candidate_logprob[0], atol=1e-4)
    for row in range(8):
        if found["covered"][row]:
            assert found["sampled"][row] == expected.sampled[0, row]
        elif options.top_k <= NUM_SORTED:
            nucleus = SamplingOptions(
                temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
            )
            assert (probabilities_from_logits(logits[row], nucleus) > 0).sum() > NUM_SORTED


@pytest.mark.parametrize("vocab_size", [40, 50_000])
def test_tokens_change_where_the_cumulative_distribution_says(vocab_size: int) -> None:
    options = SamplingOptions(temperature=0.9)
    logits = random_logits(1, 1, vocab_size)
    edges = probabilities_from_logits(logits[0], options).cumsum()
    tokens = np.linspace(0, vocab_size - 2, 30).astype(int)
    inside = tokens[(edges[tokens] > 2e-6) & (edges[tokens] < 1 - 2e-6)]
    assert inside.size > 20
    for sign in (-1, 1):
        uniforms = edges[inside] + sign * 1e-6
        found = reduced(np.repeat(logits, inside.size, 0), options, uniforms)["sampled"]
        expected = np.searchsorted(edges, uniforms, side="right")
        slack = np.searchsorted(edges, uniforms - sign * 1e-6, side="right") - expected
        assert (abs(found - expected) <= abs(slack)).all()
        assert (found <= inside).all() if sign < 0 else (found > inside).all()


def test_the_ends_of_the_unit_interval() -> None:
    logits = random_logits(2, 1, 300)
    logits[0, [0, 1, -1]] = -np.inf
    ends = np.array([0.0, 1 - 2.0**-53])
    found = reduced(np.repeat(logits, 2, 0), SamplingOptions(temperature=1.0), ends)
    assert found["sampled"].tolist() == [2, 298]
    assert np.isfinite(found["entropy"]).all()


def test_draws_follow_the_distribution() -> None:
    options = SamplingOptions(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01)
    logits = random_logits(3, 1, 300)
    uniforms = uniforms_from_seed(5, 20_000)
    found = reduced(np.repeat(logits, len(uniforms), 0), options, uniforms)
    assert found["covered"].all()
    expected = probabilities_from_logits(logits[0], options) * len(uniforms)
    counts = np.bincount(found["sampled"].astype(int), minlength=300)
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_a_row_is_the_same_whatever_the_others_are() -> None:
    options = SamplingOptions(temperature=0.8, top_p=0.9)
    logits, uniforms = random_logits(4, 17, 5000), np.random.default_rng(4).random(17)
    together = reduced(logits, options, uniforms)
    for row in range(17):
        alone = reduced(logits[row : row + 1], options, uniforms[row : row + 1])
        assert all(alone[name][0] == together[name][row] for name in ("sampled", "covered"))
        # ONNX Runtime's logarithm differs in the last bit between vectors and what is left over.
        for name in ("entropy", "candidate_logprob"):
            assert np.isclose(alone[name][0], together[name][row], rtol=2.0**-22)


def test_it_has_no_float64() -> None:
    graph = make_integer_reduce(300, 21).graph
    for node in graph:
        if node.op_type == "Cast":
            assert node.attributes["to"].as_int() != ir.DataType.DOUBLE
    assert all(value.dtype != ir.DataType.DOUBLE for value in graph.inputs)
