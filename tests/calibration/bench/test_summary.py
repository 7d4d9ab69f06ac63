"""Figures of a benchmark on replies that are made by hand."""

from dataclasses import astuple, replace

import pytest
from support.measurements.bench_rows import GREEDY, both, row

from medusa_trt.calibration.bench.summary import (
    Difference,
    Quartiles,
    compute_depth_shares,
    compute_quartiles,
    count_accept_lengths,
    select_whole_prompts,
    summarize,
    tokens_per_s,
)
from medusa_trt.calibration.prompts import (
    BenchPrompt,
)


def test_quartiles() -> None:
    assert compute_quartiles([]) is None
    assert compute_quartiles([7]) == Quartiles(7, 7, 7)
    assert compute_quartiles([4, 1, 2, 3, 5]) == Quartiles(2, 3, 4)
    assert compute_quartiles([1, 2]) == Quartiles(1.25, 1.5, 1.75)


def test_histogram_and_depths() -> None:
    histogram = count_accept_lengths([row("m", lengths=(1, 3, 1)), row("m", lengths=(2,))])
    assert histogram == (2, 1, 1)
    assert compute_depth_shares(histogram) == (0.5, 0.25)
    assert count_accept_lengths([row("m", lengths=())]) == (0,)
    assert compute_depth_shares((0, 0, 0)) == (0, 0)
    assert compute_depth_shares((9,)) == ()


def test_speed_pools_turns() -> None:
    assert tokens_per_s([row("m", decode_s=1), row("m", turn=2, decode_s=3)]) == 8 / 4
    assert tokens_per_s([row("m", tokens=(1,), lengths=(), decode_s=0)]) is None


def test_summary_of_modes() -> None:
    rows = both("a", 2, 1) + both("b", 3, 1) + both("c", 4, 1)
    plain, medusa = summarize(rows, GREEDY.modes).modes
    assert plain.tokens_per_s is not None
    assert astuple(plain.tokens_per_s) == pytest.approx((7 / 6, 4 / 3, 5 / 3))
    assert plain.speedup is None and plain.same_tokens is None
    assert plain.accept_histogram == (12,) and plain.depth_shares == ()
    assert medusa.speedup_by_prompt == {"a": 2, "b": 3, "c": 4}
    assert medusa.speedup == Quartiles(2.5, 3, 3.5)
    assert plain.step_ratio is None and medusa.step_ratio is not None
    # Two tokens per step, so a prompt that is 2, 3, 4 times as fast has steps of 1, 2/3, 1/2.
    assert astuple(medusa.step_ratio) == pytest.approx((7 / 12, 2 / 3, 5 / 6))
    assert medusa.mean_accept_length == 2
    assert medusa.accept_histogram == (3, 0, 3)
    assert medusa.depth_shares == (0.5, 0.5)
    assert (medusa.num_replies, medusa.new_tokens, medusa.num_steps) == (3, 15, 6)
    assert medusa.engine_us_per_step == Quartiles(250_000, 250_000, 250_000)
    assert medusa.host_us_per_step == Quartiles(250_000, 250_000, 250_000)
    assert medusa.same_tokens is True


def test_a_prompts_figure_is_the_median_of_its_rounds() -> None:
    rows = [
        reply
        for round_, plain_s in enumerate((2, 10, 3), start=1)
        for reply in both("a", plain_s, 1, round=round_)
    ]
    _, medusa = summarize(rows, GREEDY.modes).modes
    assert medusa.speedup_by_prompt == {"a": 3}


def test_time_to_the_first_token_is_given_for_each_turn() -> None:
    rows = [
        *both("a", 1, 1, prefill_s=0.1),
        *both("a", 1, 1, turn=2, prefill_s=0.02),
        *both("b", 1, 1, prefill_s=0.3),
    ]
    plain, _ = summarize(rows, GREEDY.modes).modes
    first, second = plain.first_token_ms
    assert first is not None and second is not None
    assert astuple(first) == pytest.approx((150, 200, 250))
    assert astuple(second) == pytest.approx((20, 20, 20))


def test_summary_by_category() -> None:
    rows = [*both("a", 2, 1), *both("b", 4, 1), *both("c", 6, 1, category="y")]
    x, y = summarize(rows, GREEDY.modes).categories
    assert (x.category, x.mode, x.num_prompts) == ("x", "greedy Medusa", 2)
    assert x.speedup == Quartiles(2.5, 3, 3.5)
    assert (x.tokens_per_s, x.baseline_tokens_per_s) == (4, 1.5)
    assert y.speedup is not None and y.speedup.median == 6
    assert y.mean_accept_length == 2


def test_differences_name_the_first_turn_and_spoil_the_mode() -> None:
    rows = both("a", 1, 1) + both("a", 1, 1, turn=2) + both("a", 1, 1, turn=3) + both("b", 1, 1)
    for index in (3, 5):
        rows[index] = replace(rows[index], token_ids=(1, 2, 9, 4, 5))
    summary = summarize(rows, GREEDY.modes)
    assert summary.differences == (Difference("greedy Medusa", "a", 2, 1),)
    assert summary.modes[1].same_tokens is False


def test_replies_without_steps_have_no_figures() -> None:
    rows = [
        replace(reply, token_ids=(1,), new_tokens=1, accept_lengths=()) for reply in both("a", 0, 0)
    ]
    plain, medusa = summarize(rows, GREEDY.modes).modes
    assert plain.tokens_per_s is None and medusa.speedup is None
    assert medusa.mean_accept_length is None and medusa.engine_us_per_step is None
    assert medusa.depth_shares == ()


def test_an_interruption_keeps_whole_conversations() -> None:
    prompts = [BenchPrompt("a", "", ("one", "two")), BenchPrompt("b", "", ("one", "two"))]
    first = both("a", 1, 1) + both("a", 1, 1, turn=2)
    rows = [*first, *both("b", 1, 1), both("b", 1, 1, turn=2)[0]]
    assert select_whole_prompts(rows, prompts, 2) == first
