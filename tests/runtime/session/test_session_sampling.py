"""Sampling by a session: with a tree as without, and by the model's distribution."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import Drafts
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.sampling import probabilities_from_logits
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree


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
        self.takes_new_trees = False
        spec = bundle.manifest.require_heads("guessing")
        self._guesses = np.zeros((1, spec.num_heads, spec.top_k), np.int64)
        for head in range(NUM_TOKENS - 1):
            seen = Counter(tokens[head + 1] for tokens in law)
            tokens = [token for token, _ in seen.most_common(spec.top_k)]
            self._guesses[0, head, : len(tokens)] = tokens

    def draft(self, hidden: NDArray[np.float32], root_ids: Sequence[int]) -> Drafts:
        return Drafts(self._guesses, None)


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
