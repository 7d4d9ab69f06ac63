"""The engine on a CPU: new trees, mixed distributions, and log-probabilities of drafts."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from support.reference.reductions import reductions_from_logits

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import TreeBatch
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.options import SamplingOptions
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree

BROAD = MedusaTree.from_choices([[child] for child in range(8)])
TREES = (load_tree("cartesian-2x3"), chain_tree(8), BROAD)
LENGTHS = (5, 37, 18)


@pytest.fixture(scope="module")
def library_bundle(tiny_export) -> Bundle:  # type: ignore[no-untyped-def]
    """The tiny model on the operator library."""
    bundle: Bundle = tiny_export("ort-cpu", precision="int8")
    return bundle


@pytest.fixture(params=["library_bundle", "tiny_bundle"])
def engine(request: pytest.FixtureRequest) -> Iterator[OrtEngine]:
    """An engine with our operators or without, whose three slots hold texts of `LENGTHS`."""
    opened = OrtEngine(request.getfixturevalue(request.param), capacity=80, batch_size=3)
    for slot, length in enumerate(LENGTHS):
        text = np.random.default_rng(slot).integers(0, 256, (1, length))
        opened.verify(text, chain_tree(length - 1), [0], rows=(0,), first_slot=slot)
    yield opened
    opened.close()


def batch_of(trees: tuple[MedusaTree, ...]) -> TreeBatch:
    return TreeBatch(
        np.stack([tree.parents for tree in trees]),
        np.stack([tree.position_offsets for tree in trees]),
        np.stack([tree.additive_mask for tree in trees]),
    )


def test_each_sequence_of_a_step_has_a_tree_of_its_own(engine: OrtEngine) -> None:
    size = TREES[0].num_nodes
    assert engine.takes_new_trees and {tree.num_nodes for tree in TREES} == {size}
    tokens = np.random.default_rng(9).integers(0, 256, (3, size))
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        trees = tuple(TREES[index] for index in order)
        expected = []
        for slot, tree in enumerate(trees):
            alone = engine.verify(
                tokens[slot : slot + 1], tree, [LENGTHS[slot]], first_slot=slot, logits=True
            )
            assert alone.logits is not None
            expected.append(alone.logits[0].copy())
        together = engine.verify(tokens, batch_of(trees), LENGTHS, logits=True)
        assert together.logits is not None
        assert np.array_equal(together.logits, np.stack(expected))


def test_each_sequence_of_a_step_has_a_distribution_of_its_own(engine: OrtEngine) -> None:
    rng, size = np.random.default_rng(1), TREES[0].num_nodes
    tokens = rng.integers(0, 256, (3, size))
    uniforms = rng.random((3, size))
    samplings = [
        SamplingOptions(temperature=0.7, top_k=5, seed=1),
        SamplingOptions(),
        SamplingOptions(temperature=1.3, top_p=0.8),
    ]
    outputs = engine.verify(tokens, batch_of(TREES), LENGTHS, logits=True, reductions=True)
    assert outputs.logits is not None
    logits = outputs.logits.copy()
    actual = engine.reduce(tokens, batch_of(TREES), samplings, uniforms)
    for index in (0, 2):
        one = slice(index, index + 1)
        expected = reductions_from_logits(
            logits[one], tokens[one], TREES[index], samplings[index], uniforms[one]
        )
        assert np.array_equal(actual.sampled[one], expected.sampled)
        assert np.allclose(actual.entropy[one], expected.entropy, atol=1e-4)
        logprobs, wanted = actual.candidate_logprob[one], expected.candidate_logprob
        assert np.allclose(logprobs[:, 1:], wanted[:, 1:], atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_drafts_carry_their_heads_log_probabilities(
    tiny_bundle: Bundle, library_bundle: Bundle, precision: str
) -> None:
    bundle = {"int8": library_bundle, "fp32": tiny_bundle}[precision]
    opened = OrtEngine(bundle, capacity=80)
    text = np.arange(6)[None]
    hidden = opened.verify(text, chain_tree(5), [0]).hidden[:, -1].copy()
    drafts = opened.draft(hidden, [5])
    opened.close()
    assert drafts.logprobs is not None
    assert (np.diff(drafts.logprobs, axis=-1) <= 1e-6).all()
    shares = np.exp(drafts.logprobs).sum(-1)
    assert ((shares > 0) & (shares < 1)).all()


def test_slots_are_exchanged(engine: OrtEngine) -> None:
    slab = engine.cache.slab
    before = slab[:, :, :2, :, :37].copy()
    engine.cache.exchange(0, 1, 37)
    assert np.array_equal(slab[:, :, 0, :, :37], before[:, :, 1])
    assert np.array_equal(slab[:, :, 1, :, :37], before[:, :, 0])


def test_logits_of_all_shapes_lie_in_the_same_memory(engine: OrtEngine) -> None:
    """A row of a real model is large, and a server sees steps of very many shapes."""
    tokens = np.random.default_rng(5).integers(0, 256, (3, 9))
    shapes = [(1, 2), (3, 9), (2, 4), (1, 2), (3, 3), (2, 8), (3, 9)]
    expected: dict[tuple[int, int], NDArray[np.float32]] = {}
    largest = None
    for num_sequences, num_nodes in shapes:
        ids, lengths = tokens[:num_sequences, :num_nodes], LENGTHS[:num_sequences]
        logits = engine.verify(ids, chain_tree(num_nodes - 1), lengths, logits=True).logits
        assert logits is not None and logits.shape[:2] == ids.shape
        if largest is not None:
            assert np.shares_memory(logits, largest)
        if logits.shape[:2] == (3, 9):
            largest = logits
        values = expected.setdefault((num_sequences, num_nodes), logits.copy())
        assert np.array_equal(logits, values)


def test_logits_that_nobody_asks_for_take_no_memory_of_their_own(engine: OrtEngine) -> None:
    tokens = np.random.default_rng(6).integers(0, 256, (2, 1, 9))
    first, second = (engine.verify(ids, chain_tree(8), [5], logits=True).logits for ids in tokens)
    assert first is not None and second is not None
    expected = second.copy()
    engine.verify(tokens[0], chain_tree(8), [5], logits=True)
    assert not np.array_equal(first, expected)
    engine.verify(tokens[1], chain_tree(8), [5])
    assert np.array_equal(first, expected), "the logits were written elsewhere"
