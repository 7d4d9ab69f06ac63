"""The comparison that every export must pass, and that a wrong engine must not."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from medusa_trt.errors import ExportError
from medusa_trt.export.comparison.logits import (
    MAX_LOGIT_DIFFERENCE,
    compare_logits,
    compute_agreement,
    find_max_relative_error,
    list_leaf_paths,
    merge_agreements,
    put_text_on_tree,
    random_tree,
)
from medusa_trt.export.comparison.passages import PASSAGES
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.manifest import Agreement
from medusa_trt.tree_configs import chain_tree

TEXT_IDS = list(PASSAGES[0].encode())
LIMIT = MAX_LOGIT_DIFFERENCE["fp32"]
LOGITS = np.array([[0, 1, 2], [5, 4, 3], [1, 3, 1], [0, 0, 9]], np.float32)

Change = Callable[[NDArray[np.float32]], None]


class WrongEngine(OrtEngine):
    """Changes what a real engine answers, or what it is asked."""

    change: Change = staticmethod(lambda logits: None)
    branching_only = False
    ignore_tree = False
    ignore_past = False

    def verify(self, *args: Any, **options: Any) -> VerifyOutputs:
        input_ids, tree, past = args
        chain = chain_tree(tree.num_nodes - 1)
        asked = chain if self.ignore_tree else tree
        outputs = super().verify(
            input_ids, asked, np.zeros_like(past) if self.ignore_past else past, **options
        )
        if outputs.logits is None or (self.branching_only and tree == chain):
            return outputs
        logits = outputs.logits.copy()
        self.change(logits[0])
        return dataclasses.replace(outputs, logits=logits)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    """The Hugging Face model of the tiny bundle."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded


@pytest.fixture
def engine(tiny_bundle: Bundle) -> WrongEngine:
    """Right until told otherwise."""
    return WrongEngine(tiny_bundle)


def test_equal_logits_agree() -> None:
    assert compute_agreement(LOGITS, LOGITS) == Agreement(4, 0.0, 0.0, 1.0, 0.0)


def test_the_largest_difference_and_the_share_of_argmaxes_are_found() -> None:
    found = LOGITS.copy()
    found[0, 2] = 0.5
    found[2, 0] -= 4
    for result in (compute_agreement(found, LOGITS), compute_agreement(LOGITS, found)):
        assert result.max_logit_difference == 4.0 and result.argmax_agreement == 0.75


def test_relative_error_and_divergence_are_what_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(5, 7)).astype(np.float32) + 3
    found = expected + rng.normal(size=(5, 7)).astype(np.float32) * 0.1
    spread = [[value - sum(row) / 7 for value in row] for row in expected.tolist()]
    errors = [
        [a - b for a, b in zip(*rows, strict=True)] for rows in zip(found, expected, strict=True)
    ]
    norm = math.sqrt(sum(x * x for row in spread for x in row))
    error = math.sqrt(sum(x * x for row in errors for x in row))
    result = compute_agreement(found, expected)
    assert result.relative_error == pytest.approx(error / norm, rel=1e-4)
    p, q = softmax(expected, axis=-1), softmax(found, axis=-1)
    assert result.kl_divergence == pytest.approx(np.mean(entropy(p, q, axis=-1)), rel=1e-3)


def test_of_several_texts_every_position_counts_once() -> None:
    close, far = Agreement(30, 0.5, 0.1, 0.9, 0.02), Agreement(10, 2.0, 0.7, 0.5, 0.1)
    merged = merge_agreements([close, far])
    assert (merged.num_positions, merged.max_logit_difference) == (40, 2.0)
    assert merged.relative_error == pytest.approx(math.sqrt((30 * 0.01 + 10 * 0.49) / 40))
    assert merged.argmax_agreement == pytest.approx(0.8)
    assert merged.kl_divergence == pytest.approx(0.04)
    broken = msgspec.structs.replace(close, max_logit_difference=math.nan)
    for pair in ([broken, far], [far, broken]):
        assert math.isnan(merge_agreements(pair).max_logit_difference)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_tree_holds_pieces_of_text(num_nodes: int, seed: int) -> None:
    tree, text = random_tree(num_nodes, 4, seed), list(range(100, 150))
    tokens = put_text_on_tree(tree, text, np.random.default_rng(seed))
    assert set(tokens) <= set(text)
    for node, (first, end) in enumerate(tree.child_ranges):
        if first < end:
            assert tokens[first] == 100 + (tokens[node] - 99) % 50


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_shows_in_the_difference(side: int) -> None:
    arrays = [LOGITS.copy(), LOGITS.copy()]
    arrays[side][1, 2] = np.nan
    result = compute_agreement(*arrays)
    assert not result.max_logit_difference <= LIMIT


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 1000))
def test_random_trees_are_what_was_asked_for(num_nodes: int, max_depth: int, seed: int) -> None:
    tree = random_tree(num_nodes, max_depth, seed)
    assert tree.num_nodes == num_nodes
    assert tree.max_depth <= max_depth
    assert tree == random_tree(num_nodes, max_depth, seed)
    paths = set(tree.medusa_choices)
    for path in paths:
        assert path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths
    seen = [node for path in list_leaf_paths(tree) for node in path]
    assert sorted(set(seen)) == list(range(num_nodes))
    for nodes in list_leaf_paths(tree):
        assert nodes[0] == 0
        assert list(tree.parents[nodes[1:]]) == list(nodes[:-1])


def test_random_trees_differ_and_branch() -> None:
    trees = [random_tree(24, 4, seed) for seed in range(10)]
    assert len({tree.medusa_choices for tree in trees}) == 10
    for tree in trees:
        assert 2 < tree.max_depth <= 4 and len(list(list_leaf_paths(tree))) > 4


@pytest.mark.parametrize("num_tokens", [1, 2, 40, 511, 900])
def test_a_right_engine_passes(
    tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine, num_tokens: int
) -> None:
    results = compare_logits(tiny_bundle, engine, model, [(TEXT_IDS * 3)[:num_tokens]])
    assert results.keys() == {"text", "tree"}
    assert results["text"].num_positions == min(num_tokens, 511)
    assert results["tree"].num_positions == 24
    for result in results.values():
        assert result.max_logit_difference <= LIMIT and result.argmax_agreement == 1


def one_not_a_number(logits: NDArray[np.float32]) -> None:
    logits[-1, 7] = np.nan


def all_not_a_number(logits: NDArray[np.float32]) -> None:
    logits[:] = np.nan


def one_infinite(logits: NDArray[np.float32]) -> None:
    logits[0, 7] = -np.inf


def one_shifted(logits: NDArray[np.float32]) -> None:
    logits[-1, 0] += 2 * LIMIT


@pytest.mark.parametrize("branching_only", [False, True])
@pytest.mark.parametrize("change", [one_not_a_number, all_not_a_number, one_infinite, one_shifted])
def test_wrong_logits_fail(
    tiny_bundle: Bundle,
    model: PreTrainedModel,
    engine: WrongEngine,
    change: Change,
    branching_only: bool,
) -> None:
    engine.change = change
    engine.branching_only = branching_only
    where = "tree" if branching_only else "text"
    with pytest.raises(ExportError, match=f"^the exported {where} logits differ .*[^\n]*$"):
        compare_logits(tiny_bundle, engine, model, [TEXT_IDS])


def test_too_few_bits_are_no_fault_to_report(
    tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine
) -> None:
    manifest = tiny_bundle.manifest
    target = msgspec.structs.replace(manifest.target, precision="int4")
    manifest = msgspec.structs.replace(manifest, target=target)

    def turned(logits: NDArray[np.float32]) -> None:
        logits *= -1

    engine.change = turned
    with pytest.raises(ExportError, match="lose too much in int4: choose another") as caught:
        bundle = Bundle(tiny_bundle.path, manifest, tiny_bundle.tree)
        compare_logits(bundle, engine, model, [TEXT_IDS])
    assert "inf" not in str(caught.value)


def test_rounding_passes(tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine) -> None:
    def rounded(logits: NDArray[np.float32]) -> None:
        logits += LIMIT / 2

    engine.change = rounded
    results = compare_logits(tiny_bundle, engine, model, [TEXT_IDS])
    assert results["text"].max_logit_difference > LIMIT / 3


def test_nothing_but_text_is_judged(
    tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine
) -> None:
    seen: set[int] = set()
    verify = engine.verify

    def record(input_ids: NDArray[np.int64], *args: Any, **options: Any) -> VerifyOutputs:
        seen.update(np.asarray(input_ids).reshape(-1).tolist())
        return verify(input_ids, *args, **options)

    engine.verify = record  # type: ignore[method-assign]
    results = compare_logits(tiny_bundle, engine, model, [TEXT_IDS[:40], TEXT_IDS[40:70]])
    assert results["text"].num_positions == 70 and seen <= set(TEXT_IDS)


def test_an_engine_that_ignores_the_tree_fails(
    tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine
) -> None:
    engine.ignore_tree = True
    with pytest.raises(ExportError, match="exported tree logits"):
        compare_logits(tiny_bundle, engine, model, [TEXT_IDS])


def test_an_engine_that_forgets_its_cache_fails(
    tiny_bundle: Bundle, model: PreTrainedModel, engine: WrongEngine
) -> None:
    engine.ignore_past = True
    with pytest.raises(ExportError, match="exported text logits"):
        compare_logits(tiny_bundle, engine, model, [TEXT_IDS])


@pytest.mark.parametrize(
    ("precision", "plain", "routed"),
    [("fp32", 1e-3, 1e-3), ("fp16", 0.02, 0.1), ("int4", 0.8, 0.8)],
)
def test_a_router_may_take_another_expert(precision: str, plain: float, routed: float) -> None:
    assert find_max_relative_error(precision, False) == plain
    assert find_max_relative_error(precision, True) == routed
