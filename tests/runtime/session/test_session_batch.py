"""Several sequences in one engine: each gets the reply it gets alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.table_session import PLAIN, session_on_table, with_eos

from medusa_trt.errors import EngineError, GenerationError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.scheduler import Request
from medusa_trt.runtime.session import Generation, MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

PROMPTS = ("hello", "a longer prompt than the others " * 4, "x", "another, of some length", "last")


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, 255), min_size=1, max_size=30), min_size=1, max_size=7
    ),
    batch_size=st.integers(1, 4),
    spec=st.sampled_from(["plain", "chain-3", "cartesian-2x3"]),
    temperature=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 100),
)
def test_each_reply_is_the_one_its_prompt_gets_alone(
    tiny_bundle: Bundle,
    prompts: list[list[int]],
    batch_size: int,
    spec: str,
    temperature: float,
    seed: int,
) -> None:
    # A quarter of all tokens end a reply, so lengths differ and slots change hands.
    bundle = with_eos(tiny_bundle, list(range(0, 300, 10)))
    sampling = SamplingOptions(temperature=temperature, seed=seed)
    options = GenerationOptions(max_new_tokens=20, tree=load_tree(spec), sampling=sampling)
    session, _ = session_on_table(bundle, seed=seed, batch_size=batch_size)
    replies = session.generate_batch(prompts, options)
    assert len(replies) == len(prompts)
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        prompt_options = replace(options, sampling=replace(sampling, seed=seed + index))
        alone, _ = session_on_table(bundle, seed=seed)
        expected = alone.generate(prompt, prompt_options)
        assert reply.token_ids == expected.token_ids
        assert reply.text == expected.text
        assert reply.finish_reason == expected.finish_reason
        assert reply.stats.accept_lengths == expected.stats.accept_lengths


def test_a_finished_sequence_costs_nothing_more(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), batch_size=3)
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=10, tree=PLAIN)).token_ids
    stops = with_eos(tiny_bundle, whole[2:3])
    session, engine = session_on_table(stops, batch_size=3)
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8]]
    replies = session.generate_batch(prompts, GenerationOptions(max_new_tokens=10, tree=PLAIN))
    steps = sum(len(reply.stats.accept_lengths) for reply in replies)
    assert len(replies[0].token_ids) == 3
    assert engine.num_sequence_steps == steps + len(prompts)


@pytest.mark.parametrize("spec", ["plain", "chain-4", "cartesian-2x3", "mc_sim_7b_63"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batches_on_the_real_engine_equal_single_replies(
    tiny_bundle: Bundle, spec: str, temperature: float
) -> None:
    sampling = SamplingOptions(temperature=temperature, seed=5)
    options = GenerationOptions(max_new_tokens=40, tree=load_tree(spec), sampling=sampling)
    with MedusaSession(tiny_bundle, batch_size=3, max_length=300) as batch:
        together = batch.generate_batch(PROMPTS, options)
        alone = [
            batch.generate_batch(
                [prompt], replace(options, sampling=replace(sampling, seed=5 + index))
            )[0]
            for index, prompt in enumerate(PROMPTS)
        ]
    with MedusaSession(tiny_bundle, max_length=300) as single:
        other_form = [
            single.generate(prompt, replace(options, sampling=replace(sampling, seed=5 + index)))
            for index, prompt in enumerate(PROMPTS)
        ]
    expected = [reply.token_ids for reply in alone]
    assert [reply.token_ids for reply in together] == expected
    assert [reply.token_ids for reply in other_form] == expected


def test_both_forms_of_the_verify_graph_agree_on_ragged_batches(tiny_bundle: Bundle) -> None:
    """Logits of a batch with ragged lengths and a tree, against one sequence at a time."""
    rng = np.random.default_rng(0)
    tree = load_tree("cartesian-2x3")
    lengths = [5, 37, 18]
    batch = OrtEngine(tiny_bundle, capacity=80, batch_size=3)
    tokens = rng.integers(0, 256, (3, tree.num_nodes))
    expected = []
    for slot, length in enumerate(lengths):
        text = rng.integers(0, 256, (1, length))
        batch.verify(text, chain_tree(length - 1), [0], first_slot=slot)
        single = OrtEngine(tiny_bundle, capacity=80)
        single.verify(text, chain_tree(length - 1), [0])
        outputs = single.verify(tokens[slot : slot + 1], tree, [length], logits=True)
        assert outputs.logits is not None
        expected.append(outputs.logits[0].copy())
        rows = single.cache.slab[:, :, 0, :, : length + tree.num_nodes]
        single.close()
        assert np.isfinite(rows).all()
    outputs = batch.verify(tokens, tree, lengths, logits=True)
    assert outputs.logits is not None
    assert np.abs(outputs.logits - np.stack(expected)).max() < 1e-4
    # What lies beyond a sequence's own rows must not matter.
    batch.cache.slab[:, :, 0, :, lengths[0] + tree.num_nodes :] = 1e3
    again = batch.verify(tokens, tree, lengths, logits=True)
    assert again.logits is not None
    assert np.array_equal(again.logits[1:], outputs.logits[1:])
    assert np.abs(again.logits[0] - expected[0]).max() < 1e-4
    batch.close()


def test_results_come_in_order_while_later_requests_run(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), batch_size=2)
    lengths, taken = [2, 9, 30, 5, 1, 3, 4], []

    def make_requests() -> Iterator[Request]:
        for index, length in enumerate(lengths):
            taken.append(index)
            options = GenerationOptions(max_new_tokens=length, tree=PLAIN)
            yield session.make_request([index + 1], options, streamed=False)

    found, seen = [], []
    for result in session.answer(make_requests()):
        assert isinstance(result, Generation)
        found.append(len(result.token_ids))
        seen.append(len(taken))
    assert found == lengths and taken == list(range(7))
    assert seen[0] < 7, "requests are taken shortly before they run"
    assert not session._events and session.scheduler.is_idle


def test_leaving_and_cancelling_end_all_requests(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), batch_size=2)
    options = GenerationOptions(max_new_tokens=9, tree=PLAIN)

    def make_requests() -> Iterator[Request]:
        for index in range(6):
            yield session.make_request([index + 1], options, streamed=False)

    results = session.answer(make_requests())
    next(results)
    results.close()
    assert not session._events
    whole = session.generate([1], options)
    assert session.scheduler.is_idle
    results = session.answer(make_requests())
    next(results)
    session.cancel()
    num_steps = engine.num_steps
    ends = [result.finish_reason for result in results if isinstance(result, Generation)]
    assert (
        len(ends) == 5 and set(ends) <= {"length", "cancelled"} and ends[-4:] == ["cancelled"] * 4
    )
    assert engine.num_steps == num_steps
    assert session.generate([1], options).token_ids == whole.token_ids


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=9),
        GenerationOptions(max_new_tokens=9, sampling=SamplingOptions(temperature=1, seed=1)),
        GenerationOptions(max_new_tokens=9, logprobs=0),
    ],
)
@pytest.mark.parametrize("num_good_steps", [0, 3])
def test_a_reply_ends_where_the_models_numbers_overflow(
    options: GenerationOptions,
    num_good_steps: int,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits of NaN gave token 0 for ever, which many models write as "!"."""
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    options = replace(options, tree=PLAIN)
    whole = session.generate([1, 2], options).token_ids
    verify, num_calls = engine.verify, 0

    def overflow(*args: Any, **kwargs: Any) -> VerifyOutputs:
        nonlocal num_calls
        outputs, num_calls = verify(*args, **kwargs), num_calls + 1
        if num_calls > num_good_steps:
            outputs.hidden[:] = np.nan
            outputs.argmax[:] = 0
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr(engine, "verify", overflow)
        with pytest.raises((EngineError, GenerationError), match="overflow at position") as caught:
            session.generate([1, 2], options)
    if isinstance(caught.value, GenerationError):
        partial = caught.value.generation
        assert isinstance(partial, Generation) and partial.token_ids == whole[:num_good_steps]
    else:
        assert num_good_steps == 0
    assert session.generate([1, 2], options).token_ids == whole


def test_bad_batches_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="batch_size is 0"):
        OrtEngine(tiny_bundle, batch_size=0)
    session, engine = session_on_table(tiny_bundle, batch_size=2)
    with pytest.raises(PromptError, match="empty"):
        session.generate_batch([[1], []])
    assert engine.num_steps == 0
    assert session.generate_batch([]) == []
