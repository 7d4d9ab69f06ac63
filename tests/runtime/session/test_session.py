"""The decode loop on an engine whose every answer can be predicted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import medusa_trees
from support.table_session import PLAIN, session_on_table, with_eos

from medusa_trt.errors import EngineError, PromptError, TreeError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree, load_tree


@settings(max_examples=40, deadline=None)
@given(
    tree=medusa_trees(max_depth=4, max_child=9),
    skill=st.sampled_from([0.0, 0.6, 1.0]),
    seed=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=40),
)
def test_every_tree_gives_the_text_of_the_model(
    tiny_bundle: Bundle, tree: MedusaTree, skill: float, seed: int, prompt: list[int]
) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), skill=skill, seed=seed)
    reply = session.generate(prompt, GenerationOptions(max_new_tokens=30, tree=tree))
    text = list(prompt)
    for token in reply.token_ids:
        assert token == engine.next_token(text)
        text.append(token)
    assert len(reply.token_ids) == 30
    assert reply.finish_reason == "length"


def test_good_heads_save_steps(tiny_bundle: Bundle) -> None:
    tree = load_tree("cartesian-9x9x1")
    steps = {}
    for skill in (0.0, 1.0):
        session, engine = session_on_table(with_eos(tiny_bundle, []), skill=skill)
        reply = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=60, tree=tree))
        steps[skill] = engine.num_steps
        assert sum(reply.stats.accept_lengths) + 1 >= len(reply.token_ids)
    assert steps[1.0] < 0.6 * steps[0.0]


def plain_reply(bundle: Bundle, num_tokens: int) -> list[int]:
    session, _ = session_on_table(with_eos(bundle, []))
    options = GenerationOptions(max_new_tokens=num_tokens, tree=PLAIN)
    return session.generate([1, 2, 3], options).token_ids


@pytest.mark.parametrize("tree", [PLAIN, chain_tree(4), load_tree("mc_sim_7b_63")])
def test_a_reply_ends_with_its_first_end_token(tiny_bundle: Bundle, tree: MedusaTree) -> None:
    # Fault 6 of the reference implementation: what an accepted block held after the end was kept.
    whole = plain_reply(tiny_bundle, 40)
    for index in range(1, 40):
        stops = [whole[index], whole[min(index + 3, 39)]]
        first = min(whole.index(stop) for stop in stops)
        session, _ = session_on_table(with_eos(tiny_bundle, stops), skill=1.0)
        reply = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=40, tree=tree))
        assert reply.token_ids == whole[: first + 1]
        assert reply.finish_reason == "stop"


def test_end_tokens_can_be_ignored(tiny_bundle: Bundle) -> None:
    whole = plain_reply(tiny_bundle, 20)
    session, _ = session_on_table(with_eos(tiny_bundle, whole[3:4]))
    options = GenerationOptions(max_new_tokens=20, ignore_eos=True)
    assert session.generate([1, 2, 3], options).token_ids == whole


@pytest.mark.parametrize("limit", range(1, 12))
def test_the_limit_counts_tokens_not_steps(tiny_bundle: Bundle, limit: int) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), skill=1.0)
    reply = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=limit))
    assert reply.token_ids == plain_reply(tiny_bundle, 12)[:limit]
    assert reply.finish_reason == "length"
    assert reply.stats.new_tokens == limit


@pytest.mark.parametrize("tree", [PLAIN, chain_tree(3), load_tree("mc_sim_7b_63")])
def test_a_full_cache_ends_the_reply_and_keeps_it(tiny_bundle: Bundle, tree: MedusaTree) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), max_length=50)
    reply = session.generate([1, 2, 3], GenerationOptions(tree=tree))
    assert reply.finish_reason == "cache_full"
    assert len(reply.token_ids) == 47
    again = session.generate([1, 2, 3], GenerationOptions(tree=tree, max_new_tokens=5))
    assert again.token_ids == reply.token_ids[:5]
    assert engine.capacity == 50 + 64


def test_a_tree_larger_than_the_spare_room_shortens_the_longest_reply(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), max_length=50)
    reply = session.generate([1, 2, 3], GenerationOptions(tree=load_tree("cartesian-9x9")))
    assert reply.finish_reason == "cache_full"
    assert 3 + len(reply.token_ids) + 91 <= 50 + 64 + 1


def test_events_add_up_to_the_reply(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), skill=1.0)
    events = list(session.stream([1, 2, 3], GenerationOptions(max_new_tokens=33)))
    reply = events[-1].generation
    assert reply is not None and all(event.generation is None for event in events[:-1])
    assert [token for event in events for token in event.token_ids] == reply.token_ids
    assert "".join(event.text for event in events) == reply.text
    assert max(len(event.token_ids) for event in events) > 1


def test_statistics_count_what_happened(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), skill=1.0)
    prompt = [5] * 200
    session, engine = session_on_table(with_eos(tiny_bundle, []), skill=1.0, max_length=400)
    stats = session.generate(prompt, GenerationOptions(max_new_tokens=20)).stats
    num_chunks = -(-len(prompt) // session.bundle.manifest.target.prefill_chunk)
    assert stats.prompt_tokens == 200 and stats.new_tokens == 20
    assert len(stats.accept_lengths) == engine.num_steps - num_chunks
    assert stats.mean_accept_length == np.mean(stats.accept_lengths)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1] * 200, "200 tokens"), ([300], "outside"), ([-1], "outside")],
)
def test_bad_prompts_are_refused_before_any_work(
    tiny_bundle: Bundle, prompt: list[int], message: str
) -> None:
    session, engine = session_on_table(tiny_bundle)
    with pytest.raises(PromptError, match=message):
        session.generate(prompt)
    assert engine.num_steps == 0


def test_bad_options_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(PromptError, match="max_new_tokens is 0"):
        GenerationOptions(max_new_tokens=0)
    session, _ = session_on_table(tiny_bundle)
    with pytest.raises(TreeError, match="5 but there are 4 heads"):
        session.generate([1], GenerationOptions(tree=chain_tree(5)))
    with pytest.raises(PromptError, match="max_length is 513"):
        MedusaSession(tiny_bundle, max_length=513)


def test_leaving_a_session_frees_its_engine(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(tiny_bundle)
    with session:
        pass
    assert engine.closed
    with MedusaSession(tiny_bundle) as real:
        reply = real.generate("hello", GenerationOptions(max_new_tokens=4))
    assert reply.stats.new_tokens <= 4
    with pytest.raises(EngineError, match="closed"):
        real.generate("hello")


@pytest.mark.parametrize("spec", ["chain-1", "chain-4", "cartesian-2x3", "mc_sim_7b_63"])
def test_medusa_equals_plain_decoding_on_the_real_engine(tiny_bundle: Bundle, spec: str) -> None:
    with MedusaSession(tiny_bundle) as session:
        for prompt in ("a", "hello world", "x" * 300):
            replies = [
                session.generate(
                    prompt, GenerationOptions(max_new_tokens=60, tree=tree, ignore_eos=True)
                )
                for tree in (PLAIN, load_tree(spec))
            ]
            assert replies[0].token_ids == replies[1].token_ids
