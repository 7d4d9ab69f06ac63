"""The operator Reduce against the host: every kernel, every filter, at the edges, row by row."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
from scipy.stats import chisquare
from support.one_operator import kernels_here
from support.reference.reductions import reductions_from_logits

from medusa_trt.export.graphs.reduce_forms import make_operator_reduce
from medusa_trt.runtime.engines.operators import find_library
from medusa_trt.runtime.engines.reduce_tensors import OUTPUTS
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits, uniforms_from_seed
from medusa_trt.tree_configs import chain_tree

pytestmark = pytest.mark.skipif(find_library() is None, reason="no operator library")

TESTS = os.fspath(Path(__file__).parents[2])
"""Where `support` lies, for processes that run this file."""

OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.floats(0.2, 3.0),
    top_k=st.sampled_from([0, 1, 2, 7, 300, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
)
ROWS = 5
"""Of a chain, so each row's parent is the one before it."""


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return opened(num_threads=2)


def opened(num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.register_custom_ops_library(str(find_library()))
    model = make_operator_reduce(1, 21)
    model.graph.inputs[0].shape = ir.Shape(["num_rows", "vocab_size"])
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def reduced(
    session: onnxruntime.InferenceSession,
    logits: NDArray[np.float32],
    options: SamplingOptions,
    uniforms: NDArray[np.generic],
    **changed: NDArray[np.generic],
) -> dict[str, NDArray[np.generic]]:
    num_rows = len(logits)
    feeds: dict[str, NDArray[np.generic]] = {
        "logits": logits,
        "candidates": np.zeros(num_rows, np.int64),
        "parent_rows": np.arange(num_rows),
        "uniforms": uniforms,
        "temperature": np.array([options.temperature], np.float32),
        "top_k": np.array([options.top_k]),
        "top_p": np.array([options.top_p], np.float32),
        "min_p": np.array([options.min_p], np.float32),
    }
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feeds | changed), strict=True))


def some_logits(seed: int, vocab_size: int) -> NDArray[np.float32]:
    """Rows with ties, tokens that are forbidden, and one that takes nearly all."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(ROWS, vocab_size))
    logits[1] = np.round(logits[1])
    logits[2, rng.random(vocab_size) < 0.5] = -np.inf
    logits[2, 0] = 0
    logits[3, vocab_size // 2] = 60
    return logits.astype(np.float32)


@given(OPTIONS, st.integers(0, 10**6), st.sampled_from([1, 3, 255, 256, 257, 1000]))
def test_reductions_are_those_of_the_host(
    session: onnxruntime.InferenceSession, options: SamplingOptions, seed: int, vocab_size: int
) -> None:
    logits = some_logits(seed, vocab_size)
    rng = np.random.default_rng(seed + 1)
    tokens, uniforms = rng.integers(0, vocab_size, ROWS), rng.random(ROWS)
    tree = chain_tree(ROWS - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = reductions_from_logits(logits[None], tokens[None], tree, options, uniforms[None])
    parents = np.maximum(tree.parents, 0)
    found = reduced(session, logits, options, uniforms, candidates=tokens, parent_rows=parents)
    assert found["covered"].all()
    assert np.array_equal(found["sampled"], expected.sampled[0])
    assert np.allclose(found["candidate_logprob"], expected.candidate_logprob[0], atol=1e-4)
    finite = np.isfinite(logits).all(-1)  # numpy's 0 times minus infinity is no number
    assert np.allclose(found["entropy"][finite], expected.entropy[0][finite], atol=1e-4)


@given(OPTIONS, st.integers(0, 10**6))
def test_draws_are_right_at_the_edges_of_each_token(
    session: onnxruntime.InferenceSession, options: SamplingOptions, seed: int
) -> None:
    row = some_logits(seed, 700)[seed % ROWS]
    probabilities = probabilities_from_logits(row, options)
    ends = np.cumsum(probabilities)
    tokens = np.flatnonzero(probabilities > 1e-5)[:40]
    margin = 1e-6
    low, high = ends[tokens] - probabilities[tokens] + margin, ends[tokens] - margin
    for uniforms in (low, high):
        found = reduced(session, np.tile(row, (len(tokens), 1)), options, uniforms)
        assert np.array_equal(found["sampled"], tokens)


def test_draws_have_the_models_distribution(session: onnxruntime.InferenceSession) -> None:
    options = SamplingOptions(temperature=1.3, top_p=0.9)
    row, num_draws = some_logits(3, 300)[0], 20_000
    uniforms = uniforms_from_seed(1, num_draws)
    sampled = reduced(session, np.tile(row, (num_draws, 1)), options, uniforms)["sampled"]
    expected = probabilities_from_logits(row, options) * num_draws
    counts = np.bincount(sampled, minlength=300)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    found, wanted = counts[common], expected[common] / expected[common].sum()
    assert chisquare(found, wanted * found.sum()).pvalue > 1e-3
    biased = np.roll(found, 1)
    assert chisquare(biased, wanted * found.sum()).pvalue < 1e-6


def test_a_row_does_not_depend_on_the_others_or_on_threads(
    session: onnxruntime.InferenceSession,
) -> None:
    logits = some_logits(5, 5000)
    options = SamplingOptions(temperature=0.8, top_k=50, top_p=0.9)
    uniforms = np.random.default_rng(0).random(ROWS)
    together = reduced(session, logits, options, uniforms)
    alone = opened(num_threads=1)
    for row in range(ROWS):
        one = reduced(alone, logits[row : row + 1], options, uniforms[row : row + 1])
        for name, values in one.items():
            assert values[0] == together[name][row]


def test_bad_inputs_are_refused(session: onnxruntime.InferenceSession) -> None:
    logits, uniforms = some_logits(0, 10), np.zeros(ROWS)
    bad: dict[str, NDArray[np.generic]] = {
        "candidates": np.full(ROWS, 10),
        "parent_rows": np.full(ROWS, -1),
        "uniforms": np.zeros(ROWS - 1),
        "temperature": np.zeros(1, np.float32),
    }
    for name, values in bad.items():
        changed = {"uniforms": uniforms} | {name: values}
        with pytest.raises((Fail, InvalidArgument)):
            reduced(session, logits, SamplingOptions(temperature=1.0), **changed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_distribution_stays_by_itself(
    session: onnxruntime.InferenceSession, value: float
) -> None:
    logits, uniforms = some_logits(3, 300), np.full(ROWS, 0.4)
    options = SamplingOptions(temperature=0.8, top_k=50, top_p=0.9)
    expected = reduced(session, logits, options, uniforms)["sampled"]
    logits[2] = value
    found = reduced(session, logits, options, uniforms)["sampled"]
    assert 0 <= found[2] < 300
    assert np.array_equal(np.delete(found, 2), np.delete(expected, 2))


def test_every_kernel_draws_the_same() -> None:
    """Each in a process of its own, since a library chooses its kernels once."""
    for name in kernels_here():
        environment = {**os.environ, "MEDUSA_TRT_KERNELS": name, "PYTHONPATH": TESTS}
        command = [sys.executable, __file__]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert shown.stdout == draws(), name


def draws() -> str:
    options = SamplingOptions(temperature=0.9, top_p=0.95)
    uniforms = np.linspace(0, 0.999, ROWS)
    return str(reduced(opened(1), some_logits(7, 3001), options, uniforms)["sampled"].tolist())


if __name__ == "__main__":
    print(draws(), end="")
