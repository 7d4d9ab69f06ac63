"""The benchmark: its figures on data made by hand, its prompts, and how it measures."""

from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from support.bench_rows import GREEDY, both, row

from medusa_trt.calibration.bench.measurement import check_runnable, measure
from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.bench.summary import (
    Difference,
    Quartiles,
    accept_histogram,
    depth_shares,
    quartiles,
    summarize,
    tokens_per_s,
    whole_prompts,
)
from medusa_trt.calibration.prompts import (
    BenchPrompt,
    mt_bench_prompts,
    prompts_from_file,
    spread_over_categories,
)
from medusa_trt.errors import PromptError, TreeError
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree


def test_quartiles() -> None:
    assert quartiles([]) is None
    assert quartiles([7]) == Quartiles(7, 7, 7)
    assert quartiles([4, 1, 2, 3, 5]) == Quartiles(2, 3, 4)
    assert quartiles([1, 2]) == Quartiles(1.25, 1.5, 1.75)


def test_histogram_and_depths() -> None:
    histogram = accept_histogram([row("m", lengths=(1, 3, 1)), row("m", lengths=(2,))], 3)
    assert histogram == (2, 1, 1, 0)
    assert depth_shares(histogram) == (0.5, 0.25, 0.0)
    assert accept_histogram([row("m", lengths=())], 2) == (0, 0, 0)
    assert depth_shares((0, 0, 0)) == (0, 0)
    assert depth_shares((9,)) == ()


def test_speed_pools_turns() -> None:
    assert tokens_per_s([row("m", decode_s=1), row("m", turn=2, decode_s=3)]) == 8 / 4
    assert tokens_per_s([row("m", tokens=(1,), lengths=(), decode_s=0)]) is None


def test_summary_of_modes() -> None:
    rows = both("a", 2, 1) + both("b", 3, 1) + both("c", 4, 1)
    plain, medusa = summarize(rows, GREEDY.modes, chain_tree(3)).modes
    assert plain.tokens_per_s is not None
    assert astuple(plain.tokens_per_s) == pytest.approx((7 / 6, 4 / 3, 5 / 3))
    assert plain.speedup is None and plain.same_tokens is None
    assert plain.accept_histogram == (12,) and plain.depth_shares == ()
    assert medusa.speedup_by_prompt == {"a": 2, "b": 3, "c": 4}
    assert medusa.speedup == Quartiles(2.5, 3, 3.5)
    assert medusa.mean_accept_length == 2
    assert medusa.accept_histogram == (3, 0, 3, 0)
    assert medusa.depth_shares == (0.5, 0.5, 0)
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
    _, medusa = summarize(rows, GREEDY.modes, chain_tree(2)).modes
    assert medusa.speedup_by_prompt == {"a": 3}


def test_time_to_the_first_token_is_given_for_each_turn() -> None:
    rows = [
        *both("a", 1, 1, prefill_s=0.1),
        *both("a", 1, 1, turn=2, prefill_s=0.02),
        *both("b", 1, 1, prefill_s=0.3),
    ]
    plain, _ = summarize(rows, GREEDY.modes, chain_tree(2)).modes
    first, second = plain.first_token_ms
    assert first is not None and second is not None
    assert astuple(first) == pytest.approx((150, 200, 250))
    assert astuple(second) == pytest.approx((20, 20, 20))


def test_summary_by_category() -> None:
    rows = [*both("a", 2, 1), *both("b", 4, 1), *both("c", 6, 1, category="y")]
    x, y = summarize(rows, GREEDY.modes, chain_tree(2)).categories
    assert (x.category, x.mode, x.num_prompts) == ("x", "greedy Medusa", 2)
    assert x.speedup == Quartiles(2.5, 3, 3.5)
    assert (x.tokens_per_s, x.baseline_tokens_per_s) == (4, 1.5)
    assert y.speedup is not None and y.speedup.median == 6
    assert y.mean_accept_length == 2


def test_differences_name_the_first_turn_and_spoil_the_mode() -> None:
    rows = both("a", 1, 1) + both("a", 1, 1, turn=2) + both("a", 1, 1, turn=3) + both("b", 1, 1)
    for index in (3, 5):
        rows[index] = replace(rows[index], token_ids=(1, 2, 9, 4, 5))
    summary = summarize(rows, GREEDY.modes, chain_tree(2))
    assert summary.differences == (Difference("greedy Medusa", "a", 2, 1),)
    assert summary.modes[1].same_tokens is False


def test_replies_without_steps_have_no_figures() -> None:
    rows = [
        replace(reply, token_ids=(1,), new_tokens=1, accept_lengths=()) for reply in both("a", 0, 0)
    ]
    plain, medusa = summarize(rows, GREEDY.modes, chain_tree(2)).modes
    assert plain.tokens_per_s is None and medusa.speedup is None
    assert medusa.mean_accept_length is None and medusa.engine_us_per_step is None
    assert medusa.depth_shares == (0, 0)


def test_an_interruption_keeps_whole_conversations() -> None:
    prompts = [BenchPrompt("a", "", ("one", "two")), BenchPrompt("b", "", ("one", "two"))]
    first = both("a", 1, 1) + both("a", 1, 1, turn=2)
    rows = [*first, *both("b", 1, 1), both("b", 1, 1, turn=2)[0]]
    assert whole_prompts(rows, prompts, 2) == first


def test_mt_bench_is_complete() -> None:
    prompts = mt_bench_prompts()
    assert len({prompt.id for prompt in prompts}) == 80
    assert set(Counter(prompt.category for prompt in prompts).values()) == {10}
    assert len({prompt.category for prompt in prompts}) == 8
    assert all(len(prompt.turns) == 2 for prompt in prompts)


def test_prompts_are_spread_over_categories() -> None:
    few = spread_over_categories(mt_bench_prompts(), 10)
    assert sorted(Counter(prompt.category for prompt in few).values()) == [1] * 6 + [2] * 2
    assert len({prompt.category for prompt in few[:8]}) == 8
    for wrong in (0, 81):
        with pytest.raises(PromptError, match="between 1 and 80"):
            spread_over_categories(mt_bench_prompts(), wrong)


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "p.jsonl"
    lines.write_text(
        '{"prompt": "hi", "extra": 1}\n\n'
        '{"turns": ["a\\u2028b", "c"], "category": "k", "question_id": 7}\n',
        encoding="utf-8",
    )
    assert prompts_from_file(lines) == [
        BenchPrompt("1", "", ("hi",)),
        BenchPrompt("7", "k", ("a\u2028b", "c")),
    ]
    text = tmp_path / "p.txt"
    text.write_text("\ufeffone\n\n two \n", encoding="utf-8")
    assert prompts_from_file(text) == [
        BenchPrompt("1", "", ("one",)),
        BenchPrompt("3", "", ("two",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "hi"}\nhi\n', "line 2 of .*p.jsonl"),
        ("p.jsonl", b'["hi"]', "line 1 of .*Expected `object`"),
        ("p.jsonl", b'{"text": "hi"}', 'line 1 of .*either "prompt" or "turns"'),
        ("p.jsonl", b'{"prompt": "hi", "turns": ["ho"]}', 'either "prompt" or "turns"'),
        ("p.jsonl", b'{"turns": ["hi", " "]}', "a prompt is empty"),
        ("p.jsonl", b'{"turns": []}', "a prompt is empty"),
        ("p.jsonl", b'{"id": 2, "prompt": "hi"}\n{"prompt": "ho"}', "id '2' occurs twice"),
        ("p.txt", b"\n \n", "no prompts"),
        ("p.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        prompts_from_file(path)


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"none\.txt: No such file"):
        prompts_from_file(tmp_path / "none.txt")


def test_modes_bring_their_baselines() -> None:
    assert [mode.name for mode in BenchOptions().modes] == [
        "greedy plain",
        "greedy Medusa",
        "heads alone",
        "sample plain",
        "sample Medusa",
        "typical Medusa",
    ]
    typical = BenchOptions(compared=("typical",)).modes
    assert [mode.name for mode in typical] == ["sample plain", "typical Medusa"]


def test_bad_options() -> None:
    for names in ((), ("medusa",)):
        with pytest.raises(PromptError, match="choose from greedy, heads, sample, typical"):
            BenchOptions(compared=names)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="rounds is 0"):
        BenchOptions(rounds=0)
    with pytest.raises(PromptError, match="max_new_tokens is 1"):
        BenchOptions(max_new_tokens=1)
    with pytest.raises(PromptError, match="measure greedy and heads only"):
        BenchOptions(temperature=0)
    assert BenchOptions(temperature=0, compared=("greedy",)).modes


def test_what_cannot_work_is_refused_before_it_starts(session: MedusaSession) -> None:
    prompt = BenchPrompt("long one", "", ("word " * 60, "word"))
    with pytest.raises(PromptError, match=r"prompt long one needs up to \d+ tokens"):
        check_runnable(session, [prompt], BenchOptions(max_new_tokens=128))
    check_runnable(session, [prompt], BenchOptions(max_new_tokens=32))
    with pytest.raises(TreeError, match="drafts nothing"):
        check_runnable(session, [prompt], BenchOptions(tree=load_tree("plain")))
    with pytest.raises(TreeError):
        check_runnable(session, [prompt], BenchOptions(tree=load_tree("chain-9")))


def test_measuring_interleaves_and_reuses_the_conversation(session: MedusaSession) -> None:
    prompts = [BenchPrompt("a", "", ("hello", "go on")), BenchPrompt("b", "", ("other",))]
    options = BenchOptions(compared=("greedy", "typical"), max_new_tokens=6, rounds=2)
    rows = list(measure(session, prompts, options))
    assert [(row.round, row.prompt_id) for row in rows] == (
        [(1, "a")] * 8 + [(1, "b")] * 4 + [(2, "a")] * 8 + [(2, "b")] * 4
    )
    orders = [
        [row.mode for row in rows if (row.round, row.prompt_id) == at and row.turn == 1]
        for at in ((1, "a"), (1, "b"), (2, "a"), (2, "b"))
    ]
    names = [mode.name for mode in options.modes]
    assert orders == [names, [*names[1:], names[0]], names[::-1], [names[0], *names[:0:-1]]]
    assert all(row.cached_tokens == 0 for row in rows if row.turn == 1)
    assert all(row.cached_tokens > 5 for row in rows if row.turn == 2)
    assert summarize(rows, options.modes, session.bundle.tree).differences == ()
