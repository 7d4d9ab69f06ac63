"""Recorded ranks, step times, tree choice and thresholds against slow references."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import table_of
from support.stand_ins.table_engine import TableEngine
from support.strategies import medusa_trees

from medusa_trt.calibration.calibrate_options import (
    LatencyOptions,
    ReplySettings,
    ThresholdOptions,
    TreeOptions,
)
from medusa_trt.calibration.intervals import resample_medians
from medusa_trt.calibration.latency.curve import LatencyCurve
from medusa_trt.calibration.latency.measurement import missing_points
from medusa_trt.calibration.latency.record import LatencyRecord
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.threshold.measurement import Rule, ThresholdRecord, score
from medusa_trt.calibration.threshold.summary import distinct_n, recommend, summarize_rules
from medusa_trt.calibration.trees.choice import TreeChoice, choose_tree
from medusa_trt.calibration.trees.head_accuracy import head_counts
from medusa_trt.calibration.trees.head_ranks import (
    RankRecord,
    mean_context,
    record_ranks,
    reply_ranks,
    table_from_records,
)
from medusa_trt.calibration.trees.replay import ABSENT, UNKNOWN, RankTable, replay
from medusa_trt.calibration.trees.tree_section import advice_from_choice
from medusa_trt.errors import CalibrationError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

SETTINGS = ReplySettings(prompts="test", prompts_sha256="", max_new_tokens=24)
PROMPTS = [BenchPrompt(str(index), "", (text,)) for index, text in enumerate(("hello", "ho", "x"))]


def on_table(
    bundle: Bundle, *, skill: float = 0.7, seed: int = 0, eos: tuple[int, ...] = ()
) -> tuple[MedusaSession, TableEngine]:
    """A session whose model is a pseudo-random function."""
    heads = bundle.manifest.heads
    engine = TableEngine(
        capacity=300,
        vocab_size=bundle.manifest.model.vocab_size,
        num_heads=heads.num_heads,
        top_k=heads.top_k,
        skill=skill,
        seed=seed,
    )
    model = msgspec.structs.replace(bundle.manifest.model, eos_token_ids=list(eos))
    manifest = msgspec.structs.replace(bundle.manifest, model=model)
    changed = dataclasses.replace(bundle, manifest=manifest)
    return MedusaSession(changed, engine=engine, max_length=200), engine


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
    session, _ = on_table(tiny_bundle, seed=seed)
    sampling = SamplingOptions(temperature=temperature, seed=seed)
    options = GenerationOptions(max_new_tokens=24, tree=tree, sampling=sampling)
    reply = session.generate(prompt, options)
    ranks = reply_ranks(session, prompt, reply.token_ids)
    steps = replay(tree, RankTable.from_replies([ranks])).steps
    assert steps.tolist() == [len(reply.stats.accept_lengths)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replay_is_exact_on_a_real_engine(tiny_bundle: Bundle, temperature: float) -> None:
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        prompt = session.encode("a longer prompt, so that it takes more than one chunk " * 4)
        sampling = SamplingOptions(temperature=temperature, seed=3)
        reply = session.generate(prompt, GenerationOptions(max_new_tokens=60, sampling=sampling))
        ranks = reply_ranks(session, prompt, reply.token_ids)
    steps = replay(tiny_bundle.tree, RankTable.from_replies([ranks])).steps
    assert steps.tolist() == [len(reply.stats.accept_lengths)]


def test_nothing_is_counted_after_the_end_token(tiny_bundle: Bundle) -> None:
    session, engine = on_table(tiny_bundle, skill=1.0)
    whole = session.generate([1, 2, 3], GenerationOptions(max_new_tokens=24)).token_ids
    end = whole[9]
    session, engine = on_table(tiny_bundle, skill=1.0, eos=(end,))
    reply = session.generate([1, 2, 3]).token_ids
    assert reply == whole[: whole.index(end) + 1]
    ranks = reply_ranks(session, [1, 2, 3], reply)
    num_heads, num_tokens = tiny_bundle.manifest.heads.num_heads, len(reply)
    assert head_counts(ranks).tolist() == [num_tokens - 1 - head for head in range(num_heads)]
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
    session, _ = on_table(tiny_bundle)
    assert reply_ranks(session, [1, 2], [5]).shape == (0, 4)
    assert reply_ranks(session, [1, 2], [5, 6]).shape == (1, 4)


def test_recording_resumes_where_it_was_killed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    session, engine = on_table(tiny_bundle)
    record_ranks(session, PROMPTS, SETTINGS, RecordLog(path, RankRecord), lambda: None)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50])  # killed in the middle of a line
    log = RecordLog(path, RankRecord)
    assert [record.prompt_id for record in log] == ["0"]
    advanced: list[None] = []
    session, engine = on_table(tiny_bundle)
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
    assert mean_context(log.records[:1]) == round(log.records[0].prompt_tokens + 23 / 2)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    path.write_text('{"settings": 1}\n')
    with pytest.raises(CalibrationError, match=r"line 1 of .*ranks.jsonl is damaged"):
        RecordLog(path, RankRecord)


def test_prompts_that_do_not_fit_are_refused_first(tiny_bundle: Bundle, tmp_path: Path) -> None:
    session, engine = on_table(tiny_bundle)
    log = RecordLog(tmp_path / "ranks.jsonl", RankRecord)
    prompts = [*PROMPTS, BenchPrompt("long", "", ("x" * 300,))]
    with pytest.raises(PromptError, match="prompt long needs up to"):
        record_ranks(session, prompts, SETTINGS, log, lambda: None)
    assert engine.num_steps == 0


def latency(context: int, num_nodes: int, step_ms: float, round_: int = 1) -> LatencyRecord:
    return LatencyRecord(
        machine="m",
        threads=None,
        batch_size=1,
        context=context,
        num_nodes=num_nodes,
        round=round_,
        num_steps=5,
        step_ms=step_ms,
        engine_ms=step_ms,
    )


def test_times_are_medians_and_interpolated_between_what_was_measured() -> None:
    records = [
        latency(context, size, context / 100 + size + noise, round_)
        for context in (100, 300)
        for size in (1, 4, 8)
        for round_, noise in enumerate((0.0, 0.1, 50.0), start=1)
    ]
    curve = LatencyCurve.from_records(records)
    assert curve.step_ms(4, 100) == pytest.approx(5.1)
    assert curve.step_ms(6, 150) == pytest.approx(7.6)
    assert curve.is_measured(8) and not curve.is_measured(6)
    assert curve.covers(6) and not curve.covers(9)
    resampled = curve.step_ms_resampled(6, 150)
    assert resampled.shape == (1000,)
    assert resampled.min() == pytest.approx(7.5) and resampled.max() == pytest.approx(57.5)
    for size, context in ((9, 100), (4, 99), (4, 301)):
        with pytest.raises(CalibrationError, match="lies outside what was measured"):
            curve.step_ms(size, context)


def test_a_size_that_an_interruption_left_out_somewhere_does_not_count() -> None:
    curve = LatencyCurve.from_records([latency(1, 1, 1), latency(1, 2, 1), latency(9, 1, 1)])
    assert curve.sizes == [1]


def test_resample_medians_are_spread_as_the_samples() -> None:
    assert set(resample_medians([3.0])) == {3.0}
    samples = np.random.default_rng(0).normal(10, 1, 25)
    # The median of n normal samples has a standard error of about 1.25 / sqrt(n).
    assert resample_medians(samples.tolist()).std() == pytest.approx(0.25, abs=0.12)


def test_only_missing_samples_are_measured() -> None:
    options = LatencyOptions(sizes=(1, 4), contexts=(16, 64), rounds=2)
    points = missing_points(options, [], "m", None)
    assert len(set(points)) == len(points) == 8
    assert [round_ for round_, _, _ in points] == [1] * 4 + [2] * 4
    done = [latency(16, 4, 1.0, 2), latency(64, 1, 1.0, 1)]
    left = missing_points(options, done, "m", None)
    assert left == [point for point in points if point not in ((2, 16, 4), (1, 64, 1))]
    assert missing_points(options, done, "another machine", None) == points
    assert missing_points(options, done, "m", 2) == points


def curve_of(step_ms: dict[int, float]) -> LatencyCurve:
    return LatencyCurve.from_records(
        [latency(16, size, time, round_) for size, time in step_ms.items() for round_ in (1, 2, 3)]
    )


def choose(step_ms: dict[int, float], options: TreeOptions | None = None) -> TreeChoice:
    return choose_tree(
        table_of(30),
        curve_of(step_ms),
        num_heads=3,
        top_k=4,
        context=16,
        bundle_tree=chain_tree(2),
        options=options or TreeOptions(),
    )


def test_flat_steps_want_the_largest_tree_and_steep_ones_plain_decoding() -> None:
    flat = choose(dict.fromkeys((1, 2, 4, 8, 16), 10.0))
    assert flat.chosen.num_nodes == 16 and flat.chosen.speedup.low > 1
    steep = choose({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0})
    assert steep.chosen == steep.plain and steep.best.speedup.high < 1
    assert steep.chosen_tree == load_tree("plain") and steep.chosen_tree.name == "plain"
    assert "Plain decoding is recommended" in advice_from_choice(steep, TreeOptions())
    greedy = choose({1: 10.0, 2: 10.0, 4: 10.0}, TreeOptions(min_speedup=9.0))
    assert greedy.chosen == greedy.plain


def test_the_choice_maximizes_accepted_length_over_measured_time() -> None:
    times = {1: 10.0, 2: 10.5, 4: 11.0, 6: 11.5, 7: 17.0, 8: 17.5, 16: 30.0}
    choice = choose(times)
    for prediction in (*choice.by_size, *choice.fixed):
        if prediction.num_nodes in times:
            step_ms = times[prediction.num_nodes]
            assert prediction.step_ms == step_ms and prediction.is_measured
            speed = 1e3 * prediction.accept_length / step_ms
            assert prediction.tokens_per_s == pytest.approx(speed)
            assert prediction.speedup.median == pytest.approx(speed / 100)
            assert choice.best.tokens_per_s >= speed
    assert choice.chosen == choice.best and choice.best.num_nodes == 6
    lengths = [prediction.accept_length for prediction in choice.by_size]
    assert lengths[-1] > lengths[0]
    assert {"chain-1", "chain-3"} <= {prediction.method for prediction in choice.fixed}


def test_an_interpolated_size_is_reported_but_not_chosen() -> None:
    choice = choose({1: 10.0, 2: 30.0, 16: 31.0, 17: 90.0})
    assert choice.best.num_nodes == 16 and choice.untried is None
    choice = choose({1: 10.0, 2: 10.0, 16: 30.0})
    assert choice.untried is not None and choice.best.num_nodes == 2
    assert f"--sizes {choice.untried.num_nodes}" in advice_from_choice(choice, TreeOptions())


def test_the_search_needs_step_times() -> None:
    with pytest.raises(CalibrationError, match="calibrate latency"):
        choose({1: 10.0})


def test_scores_are_those_of_the_session(tiny_bundle: Bundle) -> None:
    sampling = SamplingOptions(temperature=0.8, seed=5)
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        prompt = session.encode("hello there")
        sampled = session.generate(
            prompt, GenerationOptions(max_new_tokens=30, sampling=sampling, logprobs=0)
        )
        total, num_agreeing = score(session, prompt, sampled.token_ids, sampling)
        assert total == pytest.approx(sum(p.logprob for p in sampled.logprobs), abs=1e-3)
        assert num_agreeing == len(sampled.token_ids)
        greedy = session.generate(prompt, GenerationOptions(max_new_tokens=30)).token_ids
        assert score(session, prompt, greedy, sampling)[1] < len(greedy)


def threshold_record(
    threshold: float | None, prompt: str, tokens: list[int], steps: int, logprob: float
) -> ThresholdRecord:
    alpha = None if threshold is None else threshold**0.5
    return ThresholdRecord(
        settings=SETTINGS,
        rule=Rule(temperature=0.7, posterior_threshold=threshold, posterior_alpha=alpha),
        tree=((0,),),
        prompt_id=prompt,
        token_ids=tokens,
        num_steps=steps,
        sum_logprob=logprob,
        num_agreeing=2,
    )


def test_threshold_summaries_and_recommendation() -> None:
    tokens, dull = [1, 2, 3, 4, 5], [1, 1, 1, 1, 1]
    records = [
        threshold_record(None, "a", tokens, 4, -5.0),
        threshold_record(None, "b", tokens, 4, -10.0),
        threshold_record(0.1, "a", tokens, 2, -5.0),
        threshold_record(0.1, "b", tokens, 2, -10.0),
        threshold_record(0.01, "a", tokens, 1, -8.0),
        threshold_record(0.01, "b", tokens, 1, -14.0),
        threshold_record(0.2, "a", dull, 1, -1.0),
        threshold_record(0.2, "b", dull, 1, -1.0),
        threshold_record(0.1, "c", tokens, 2, -99.0),  # not answered by every rule
    ]
    rules = list(dict.fromkeys(record.rule for record in records))
    sampler, kept, unlikely, repeated = summarize_rules(records, rules)
    assert (sampler.accept_length, kept.accept_length) == (1.0, 2.0)
    assert sampler.mean_logprob == kept.mean_logprob == -1.5
    assert kept.logprob_gain.median == 0 and unlikely.logprob_gain.median == pytest.approx(-0.7)
    assert unlikely.logprob_gain.low < -0.7 < unlikely.logprob_gain.high
    assert list(repeated.distinct) == pytest.approx([0.2, 0.25, 1 / 3])
    assert kept.token_agreement == 0.4
    (found,) = recommend((sampler, kept, unlikely, repeated), ThresholdOptions())
    assert found.rule.posterior_threshold == 0.1
    (found,) = recommend((sampler, unlikely, repeated), ThresholdOptions())
    assert found.rule == sampler.rule and "no threshold" in found.reason
    slow = dataclasses.replace(kept, accept_length=1.0)
    (found,) = recommend((sampler, slow), ThresholdOptions())
    assert found.rule == sampler.rule and "as much" in found.reason
    assert summarize_rules(records[:1], rules) == ()


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_distinct_n(token_ids: list[int], n: int) -> None:
    grams = [token_ids[i : i + n] for i in range(len(token_ids)) if i + n <= len(token_ids)]
    unique: list[list[int]] = []
    for gram in grams:
        if gram not in unique:
            unique.append(gram)
    assert distinct_n(token_ids, n) == (len(unique) / len(grams) if grams else None)
