"""Sampling: filters against transformers, the device against the host, draws against the law."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medusa_trt.errors import PromptError
from medusa_trt.runtime.acceptance import accept_exact
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.engines.reduce_tensors import reductions_from_outputs
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.sampling import (
    probabilities_from_logits,
    token_from_logits,
    uniforms_from_seed,
)
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree

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


@settings(deadline=None, max_examples=60)
@given(sampling_options(), st.integers(0, 10**6))
def test_the_device_draws_what_the_host_draws(
    reduce_session: onnxruntime.InferenceSession, options: SamplingOptions, seed: int
) -> None:
    logits = random_logits(seed, 8, VOCAB_SIZE)
    rng = np.random.default_rng(seed)
    parents = rng.integers(0, 8, 8)
    candidates = rng.integers(0, VOCAB_SIZE, 8)
    uniforms = rng.random(8)
    num_sorted = min(options.top_k or (128 if options.top_p < 1 else 1), VOCAB_SIZE)
    sampled, covered, entropy, candidate_logprob = reduce_session.run(
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


@pytest.fixture(scope="module")
def reduce_session(tiny_bundle: Bundle) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(tiny_bundle.graph_path("reduce"))


def test_rows_that_the_graph_does_not_cover_are_drawn_on_the_host() -> None:
    logits = random_logits(0, 6, VOCAB_SIZE)
    uniforms = np.random.default_rng(0).random((2, 3))
    options = SamplingOptions(temperature=1.5, top_p=0.95)
    read = []

    def row_of(row: int) -> NDArray[np.float32]:
        read.append(row)
        found: NDArray[np.float32] = logits[row]
        return found

    outputs = {
        "sampled": np.full(6, -1),
        "covered": np.array([True, False, True, True, True, False]),
        "entropy": np.zeros(6, np.float32),
        "candidate_logprob": np.zeros(6, np.float32),
    }
    sampled = reductions_from_outputs(outputs, options, uniforms, row_of).sampled
    assert read == [1, 5]
    for row in range(6):
        drawn = token_from_logits(logits[row], options, uniforms.flat[row])
        assert sampled.flat[row] == (drawn if row in read else -1)


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    assert np.array_equal(uniforms_from_seed(7, 10), uniforms_from_seed(7, 100)[:10])
    assert not np.array_equal(uniforms_from_seed(7, 10), uniforms_from_seed(8, 10))
    assert not np.array_equal(uniforms_from_seed(None, 10), uniforms_from_seed(None, 10))


@pytest.mark.parametrize("spec", ["chain-4", "cartesian-2x3", "mc_sim_7b_63"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(temperature=0.8, seed=11),
        SamplingOptions(temperature=1.5, top_k=20, seed=12),
        SamplingOptions(temperature=1.0, top_p=0.8, min_p=0.02, seed=13),
    ],
)
def test_sampling_with_a_tree_gives_the_tokens_of_plain_sampling(
    tiny_bundle: Bundle, sampling: SamplingOptions, spec: str
) -> None:
    with MedusaSession(tiny_bundle) as session:
        replies = [
            session.generate(
                "hello",
                GenerationOptions(
                    max_new_tokens=60, ignore_eos=True, sampling=sampling, tree=load_tree(tree)
                ),
            ).token_ids
            for tree in ("plain", spec)
        ]
    assert replies[0] == replies[1]


# Few outcomes, so that a few thousand draws tell a wrong rule from a right one.
PEAKED = SamplingOptions(temperature=0.7, top_k=3)
NUM_DRAWS = 3000
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def law(tiny_bundle: Bundle) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of tokens after the prompt, from the model's own logits."""
    engine = OrtEngine(tiny_bundle, capacity=64)
    sequences: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        longer = {}
        for tokens, probability in sequences.items():
            text = np.array([[104, 105, *tokens]])
            outputs = engine.verify(text, chain_tree(text.size - 1), [0], logits=True)
            assert outputs.logits is not None
            after = probabilities_from_logits(outputs.logits[0, -1], PEAKED)
            for token in np.flatnonzero(after):
                longer[(*tokens, int(token))] = probability * float(after[token])
        sequences = longer
    engine.close()
    return sequences


def p_value(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Chi-square test, outcomes expected fewer than 5 times taken together."""
    assert set(counts) <= set(law)
    total = sum(counts.values())
    common = [key for key, probability in law.items() if probability * total >= 5]
    observed = [counts[key] for key in common]
    expected = [law[key] * total for key in common]
    observed.append(total - sum(observed))
    expected.append(total - sum(expected))
    return float(chisquare(observed, expected).pvalue)


class GuessingEngine(OrtEngine):
    """Its heads draft what the law holds at their positions, as trained heads would."""

    def __init__(self, bundle: Bundle, law: dict[tuple[int, ...], float]) -> None:
        super().__init__(bundle, capacity=128)
        spec = bundle.manifest.heads
        self._guesses = np.zeros((1, spec.num_heads, spec.top_k), np.int64)
        for head in range(NUM_TOKENS - 1):
            seen = Counter(tokens[head + 1] for tokens in law)
            tokens = [token for token, _ in seen.most_common(spec.top_k)]
            self._guesses[0, head, : len(tokens)] = tokens

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> NDArray[np.int64]:
        return self._guesses


def test_sampling_keeps_the_models_distribution(
    tiny_bundle: Bundle, law: dict[tuple[int, ...], float]
) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = 0
    tree = load_tree("cartesian-4x4")
    engine = GuessingEngine(tiny_bundle, law)
    with MedusaSession(tiny_bundle, engine=engine, max_length=64) as session:
        for seed in range(NUM_DRAWS):
            sampling = SamplingOptions(
                temperature=PEAKED.temperature, top_k=PEAKED.top_k, seed=seed
            )
            reply = session.generate(
                [104, 105],
                GenerationOptions(
                    max_new_tokens=NUM_TOKENS,
                    ignore_eos=True,
                    sampling=sampling,
                    tree=tree,
                ),
            )
            counts[tuple(reply.token_ids)] += 1
            accepted += max(reply.stats.accept_lengths) > 1
    assert p_value(counts, law) > 1e-3
    assert accepted > NUM_DRAWS / 100, "no draft was accepted, so nothing was tested"


def test_the_test_finds_a_biased_rule(law: dict[tuple[int, ...], float]) -> None:
    """Accepting a draft with its own probability, then drawing afresh, favours drafts."""
    rng = np.random.default_rng(0)
    first = Counter(key[0] for key in law)
    drafted = max(first, key=lambda token: sum(p for key, p in law.items() if key[0] == token))
    sequences, weights = list(law), np.array(list(law.values()))
    weights /= weights.sum()
    share = sum(p for key, p in law.items() if key[0] == drafted)
    with_draft = np.array([weight if key[0] == drafted else 0 for key, weight in law.items()])
    with_draft /= with_draft.sum()
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(NUM_DRAWS):
        chosen = with_draft if rng.random() < share else weights
        counts[sequences[rng.choice(len(sequences), p=chosen)]] += 1
    assert p_value(counts, law) < 1e-6


def test_plain_draws_pass_the_same_test(law: dict[tuple[int, ...], float]) -> None:
    rng = np.random.default_rng(1)
    weights = np.array(list(law.values()))
    draws = rng.choice(len(law), NUM_DRAWS, p=weights / weights.sum())
    sequences = list(law)
    assert p_value(Counter(sequences[draw] for draw in draws), law) > 1e-3


def test_acceptance_follows_the_drawn_tokens() -> None:
    tree = MedusaTree.from_choices([(0,), (1,), (1, 0)])
    accepted = accept_exact(tree, [5, 6, 7, 8], [7, 9, 8, 3])
    assert accepted == [0, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2.0}, "min_p is 2"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_sampling_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        SamplingOptions(**change)  # type: ignore[arg-type]
