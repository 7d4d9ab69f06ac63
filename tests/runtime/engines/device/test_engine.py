"""On a GPU: the graphs against Hugging Face, replayed steps, replies. `pytest -m gpu`.

ONNX Runtime with CUDA takes the place of the one without: pip uninstall onnxruntime, then
pip install 'onnxruntime-gpu[cuda]==1.31.1'.
"""

import importlib.util

import numpy as np
import pytest
from support.reference.reductions import reductions_from_logits
from support.tiny_models import VOCAB_SIZE, llama_config, random_model

from medusa_trt.errors import BuildError
from medusa_trt.export.comparison.logits import (
    MAX_RELATIVE_ERROR,
    compare_on_text,
    compare_on_tree,
    random_tree,
)
from medusa_trt.export.tensorrt.build import build_engines
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.backends import engine_from_backend
from medusa_trt.runtime.engines.base import Engine
from medusa_trt.runtime.engines.device.memory import read_compute_capability
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(read_compute_capability() is None, reason="CUDA finds no GPU"),
]
TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], name="six")
SAMPLING = (
    SamplingOptions(temperature=0.8),
    SamplingOptions(temperature=1.2, top_k=20),
    SamplingOptions(temperature=1.0, top_p=0.8, min_p=0.01),
)
PROMPT = "the quick brown fox jumps over the lazy dog. the quick brown "
BACKENDS = {
    "ort-cuda": ("onnxruntime", "cuda_bundle"),
    "tensorrt": ("tensorrt", "trt_bundle"),
    "tensorrt-rtx": ("tensorrt_rtx", "trt_bundle"),
}
"""What each needs to be installed, and its bundle."""


@pytest.fixture(params=BACKENDS)
def opened(request: pytest.FixtureRequest) -> tuple[str, Bundle]:
    """A backend, and a bundle for it with its engines."""
    module, fixture = BACKENDS[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    bundle: Bundle = request.getfixturevalue(fixture)
    if request.param != "ort-cuda":
        options = BuildOptions(target=request.param, max_batch_size=2, overwrite=True)
        try:
            build_engines(bundle, options, lambda _: None)
        except BuildError as error:
            if "does not build for compute capability" in str(error):
                pytest.skip(str(error))  # TensorRT-RTX knows consumer GPUs only
            raise
    return request.param, bundle


def engine_for(opened: tuple[str, Bundle], batch_size: int) -> Engine:
    backend, bundle = opened
    return engine_from_backend(
        backend, bundle, capacity=384, batch_size=batch_size, num_threads=None
    )


def test_logits_equal_hugging_face(opened: tuple[str, Bundle]) -> None:
    model = random_model(llama_config())
    ids = np.random.default_rng(3).integers(0, VOCAB_SIZE, 300).tolist()
    engine = engine_for(opened, batch_size=2)
    agreements = [
        compare_on_text(engine, model, ids, chunk=17),
        compare_on_tree(engine, model, [ids[:31]], random_tree(20, 4, seed=5)),
        compare_on_tree(engine, model, [ids[:31], ids[:7]], random_tree(20, 4, seed=5)),
    ]
    engine.close()
    limit = MAX_RELATIVE_ERROR[opened[1].manifest.target.precision]
    assert all(agreement.relative_error <= limit for agreement in agreements), agreements


def test_a_recorded_step_repeats_the_first(opened: tuple[str, Bundle]) -> None:
    engine = engine_for(opened, batch_size=1)
    steps = []
    for tokens in ([[5, 6, 7, 8, 9, 10]], [[11, 12, 13, 14, 15, 16]], [[5, 6, 7, 8, 9, 10]]):
        outputs = engine.verify(tokens, TREE, [0], logits=True)
        assert outputs.logits is not None
        steps.append((outputs.logits.copy(), engine.draft(outputs.hidden[:, 0], [0]).ids.copy()))
    engine.close()
    assert np.array_equal(steps[0][0], steps[2][0])
    assert not np.array_equal(steps[0][0], steps[1][0])
    assert np.array_equal(steps[0][1], steps[2][1])


def test_the_device_draws_what_the_host_draws(opened: tuple[str, Bundle]) -> None:
    engine = engine_for(opened, batch_size=1)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, TREE.num_nodes))
    for seed, sampling in enumerate(SAMPLING):
        uniforms = np.random.default_rng(seed).random(tokens.shape)
        logits = engine.verify(tokens, TREE, [0], logits=True, reductions=True).logits
        assert logits is not None
        actual = engine.reduce(tokens, TREE, [sampling], uniforms)
        expected = reductions_from_logits(logits, tokens, TREE, sampling, uniforms)
        assert np.array_equal(actual.sampled, expected.sampled)
        assert np.allclose(actual.entropy, expected.entropy, atol=1e-3)
        logprobs, expected_logprobs = actual.candidate_logprob, expected.candidate_logprob
        assert np.allclose(logprobs[:, 1:], expected_logprobs[:, 1:], atol=1e-3)
    engine.close()


def test_replies_with_a_tree_equal_plain_ones(opened: tuple[str, Bundle]) -> None:
    backend, bundle = opened
    options = [
        GenerationOptions(max_new_tokens=48, ignore_eos=True, tree=tree)
        for tree in (TREE, chain_tree(0))
    ]
    with MedusaSession(bundle, backend=backend, max_length=256) as session:
        with_tree, plain = (session.generate(PROMPT, o).token_ids for o in options)
        pairs = enumerate(zip(with_tree, plain, strict=True))
        parting = next((index for index, (left, right) in pairs if left != right), None)
        if parting is None:
            return
        # Products of one row and of six may differ in the last bit of float16, which decides
        # between two tokens that are all but equal.
        text = [*session.encode(PROMPT), *plain[:parting]]
        chain = chain_tree(len(text) - 1)
        logits = session.engine.verify([text], chain, [0], rows=(len(text) - 1,), logits=True)
    assert logits.logits is not None
    row = logits.logits[0, 0]
    limit = MAX_RELATIVE_ERROR[bundle.manifest.target.precision] * float(row.std())
    assert abs(row[with_tree[parting]] - row[plain[parting]]) <= limit
