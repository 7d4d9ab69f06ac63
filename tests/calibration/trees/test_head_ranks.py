"""Recorded ranks: replayed, they give the steps that decoding takes."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import medusa_trees
from support.table_session import session_on_table, with_eos

from medusa_trt.calibration.options import ReplySettings
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.trees.head_accuracy import count_samples
from medusa_trt.calibration.trees.head_ranks import (
    RankRecord,
    compute_mean_context,
    rank_reply,
    record_ranks,
    table_from_records,
)
from medusa_trt.calibration.trees.replay import ABSENT, UNKNOWN, RankTable, replay
from medusa_trt.errors import PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession

SETTINGS = ReplySettings(prompts="test", prompts_sha256="", max_new_tokens=24)
PROMPTS = [BenchPrompt(str(index), "", (text,)) for index, text in enumerate(("hello", "ho", "x"))]


@settings(max_examples=30, deadline=None)
@given(
    tree=medusa_trees(max_depth=4, max_child=9),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 1.0]),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=40),
)
def test_replay_takes_the_steps_of_decoding(
    tiny_bundle: Bundle, tree: object, seed: int, temperature: float, prompt: list[int]
) -> None:
    assert isinstance(tree, type(tiny_bundle.tree))
    session, _ = session_on_table(with_eos(tiny_bundle, []), seed=seed)
    sampling = SamplingOptions(temperature=temperature, seed=seed)
    options = GenerationOptions(max_new_tokens=24, tree=tree, sampling=sampling)
    reply = session.generate(prompt, options)
    ranks = rank_reply(session, prompt, reply.token_ids)
    steps = replay(tree, RankTable.from_replies([ranks]))
    assert steps.tolist() == [len(reply.stats.accept_lengths)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replay_is_exact_on_a_real_engine(tiny_bundle: Bundle, temperature: float) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        prompt = session.encode("a longer prompt, so that it takes more than one chunk " * 4)
        sampling = SamplingOptions(temperature=temperature, seed=3)
        options = GenerationOptions(max_new_tokens=60, tree=tiny_bundle.tree, sampling=sampling)
        reply = session.generate(prompt, options)
        ranks = rank_reply(session, prompt, reply.token_ids)
    steps = replay(tiny_bundle.tree, RankTable.from_replies([ranks]))
    assert steps.tolist() == [len(reply.stats.accept_lengths)]


def test_nothing_is_counted_after_the_end_token(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), skill=1.0)
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=24)).token_ids
    end = whole[9]
    session, engine = session_on_table(with_eos(tiny_bundle, [end]), skill=1.0)
    reply = session.generate([1, 2, 3]).token_ids
    assert reply == whole[: whole.index(end) + 1]
    ranks = rank_reply(session, [1, 2, 3], reply)
    num_heads = tiny_bundle.manifest.require_heads("the test").num_heads
    num_tokens = len(reply)
    assert count_samples(ranks).tolist() == [num_tokens - 1 - head for head in range(num_heads)]
    text = [1, 2, 3]
    for root in range(num_tokens - 1):
        drafts = engine._drafts([*text, *reply[:root]])
        for head in range(num_heads):
            target = root + 1 + head
            if target >= num_tokens:
                assert ranks[root, head] == UNKNOWN
            else:
                row = drafts[head].tolist()
                rank = row.index(reply[target]) if reply[target] in row else ABSENT
                assert ranks[root, head] == rank


def test_short_replies_have_no_ranks(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    assert rank_reply(session, [1, 2], [5]).shape == (0, 4)
    assert rank_reply(session, [1, 2], [5, 6]).shape == (1, 4)


def test_recording_resumes_where_it_was_killed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    record_ranks(session, PROMPTS, SETTINGS, RecordLog(path, RankRecord), lambda: None)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50])  # killed in the middle of a line
    log = RecordLog(path, RankRecord)
    assert [record.prompt_id for record in log] == ["0"]
    advanced: list[None] = []
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    record_ranks(session, PROMPTS, SETTINGS, log, lambda: advanced.append(None))
    assert path.read_bytes() == whole and len(advanced) == 2
    steps = engine.num_steps
    record_ranks(session, PROMPTS, SETTINGS, RecordLog(path, RankRecord), lambda: None)
    assert engine.num_steps == steps  # nothing is left to do
    other = msgspec.structs.replace(SETTINGS, temperature=0.5)
    record_ranks(session, PROMPTS, other, log, lambda: None)
    assert len(RecordLog(path, RankRecord).records) == 6  # other settings are other replies
    table = table_from_records(log.records, 4)
    assert table.num_replies == 6
    assert compute_mean_context(log.records[:1]) == round(log.records[0].prompt_tokens + 23 / 2)


def test_prompts_that_do_not_fit_are_refused_first(tiny_bundle: Bundle, tmp_path: Path) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    log = RecordLog(tmp_path / "ranks.jsonl", RankRecord)
    prompts = [*PROMPTS, BenchPrompt("long", "", ("x" * 300,))]
    with pytest.raises(PromptError, match="prompt long needs up to"):
        record_ranks(session, prompts, SETTINGS, log, lambda: None)
    assert engine.num_steps == 0


def test_a_bundle_without_heads_has_replies_without_ranks(headless_bundle: Bundle) -> None:
    # calibrate quantization records them too, for the texts that it compares on.
    with MedusaSession(headless_bundle, max_length=64, num_threads=1) as session:
        assert rank_reply(session, [1, 2], [5, 6, 7]).shape == (2, 0)
        assert rank_reply(session, [1, 2], []).shape == (0, 0)
