"""Typical acceptance against a slow reference and the paper's special cases."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference.acceptance import accept_typical_slowly
from support.strategies import medusa_trees

from medusa_trt.errors import PromptError
from medusa_trt.runtime.acceptance import accept_typical
from medusa_trt.runtime.choosing import Chooser
from medusa_trt.runtime.engines.base import Reductions
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.tree_configs import MedusaTree, chain_tree


def typical(
    tree: MedusaTree,
    logprobs: list[float],
    entropy: list[float],
    threshold: float = 0.09,
    alpha: float = 0.3,
) -> list[int]:
    return accept_typical(
        tree,
        logprobs,
        entropy,
        posterior_threshold=threshold,
        posterior_alpha=alpha,
    )


@given(medusa_trees(), st.data(), st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_typical_acceptance_is_the_papers(
    tree: MedusaTree, data: st.DataObject, threshold: float, alpha: float
) -> None:
    def numbers(low: float, high: float) -> list[float]:
        values = st.floats(low, high, width=32)
        size = tree.num_nodes
        return data.draw(st.lists(values, min_size=size, max_size=size))

    logprobs, entropy = numbers(-4, 0), numbers(0, 3)
    accepted = typical(tree, logprobs, entropy, threshold, alpha)
    length, likelihood, _ = accept_typical_slowly(tree, logprobs, entropy, threshold, alpha)
    assert len(accepted) == length
    assert sum(logprobs[node] for node in accepted[1:]) == pytest.approx(likelihood, abs=1e-4)


def test_the_root_is_always_taken() -> None:
    accepted = typical(chain_tree(2), [-50.0, -50.0, 0.0], [0.0, 0.0, 0.0])
    assert accepted == [0]


def test_an_uncertain_model_accepts_unlikely_tokens() -> None:
    unlikely = [0.0, math.log(0.05)]
    assert typical(chain_tree(1), unlikely, [0.1, 0.0]) == [0]
    assert typical(chain_tree(1), unlikely, [2.0, 0.0]) == [0, 1]


def test_equally_long_paths_go_by_likelihood() -> None:
    tree = MedusaTree.from_choices([(0,), (1,)])
    assert typical(tree, [0.0, math.log(0.3), math.log(0.4)], [1.0] * 3) == [0, 2]


def test_temperature_zero_is_greedy() -> None:
    options = GenerationOptions(acceptance="typical")
    assert options.rule == "greedy"
    assert GenerationOptions(sampling=SamplingOptions(temperature=0.5)).rule == "sample"


def test_the_papers_thresholds_are_the_defaults() -> None:
    options = GenerationOptions()
    assert (options.posterior_threshold, options.posterior_alpha) == (0.09, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posterior_threshold": 1.5}, "posterior_threshold is 1.5"),
        ({"posterior_alpha": float("nan")}, "posterior_alpha is nan"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"stop": ("",)}, "empty stop text"),
        (
            {"acceptance": "greedy", "sampling": SamplingOptions(temperature=1)},
            "greedy acceptance at temperature 1",
        ),
        (
            {"acceptance": "typical", "sampling": SamplingOptions(temperature=1), "logprobs": 1},
            "typical acceptance takes no",
        ),
    ],
)
def test_contradictory_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        GenerationOptions(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "bonus_token"), [("typical", 12), ("sample", 22)])
def test_the_bonus_token_is_greedy_by_typical_acceptance_and_drawn_by_sampling(
    rule: Literal["typical", "sample"], bonus_token: int
) -> None:
    options = GenerationOptions(sampling=SamplingOptions(temperature=1), acceptance=rule)
    reductions = Reductions(
        sampled=np.array([[0] * 3, [5, 6, 22]]),
        entropy=np.zeros((2, 3), np.float32),
        candidate_logprob=np.array([[-50] * 3, [0, 0, 0]], np.float32),
    )
    chooser = Chooser(options, [1], 8)
    accepted = chooser.accept(chain_tree(2), [4, 5, 6], [10, 11, 12], reductions, 1)
    assert accepted == ([0, 1, 2], bonus_token)
