"""The benchmark: its figures on data made by hand, its prompts, and a whole run."""

import argparse
import json
import signal
import sys
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medusa_trt import cli_bench
from medusa_trt.calibration.bench import ReplyRow, check_runnable, measure
from medusa_trt.calibration.bench_options import BenchOptions
from medusa_trt.calibration.bench_prompts import (
    BenchPrompt,
    mt_bench_prompts,
    prompts_from_file,
    spread_over_categories,
)
from medusa_trt.calibration.bench_report import BenchReport, BenchSetup, Machine, replaced_file
from medusa_trt.calibration.bench_summary import (
    Difference,
    Quartiles,
    accept_histogram,
    depth_shares,
    quartiles,
    summarize,
    tokens_per_s,
    whole_prompts,
)
from medusa_trt.calibration.bench_tables import print_report
from medusa_trt.errors import MedusaError, PromptError, TreeError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

GREEDY = BenchOptions(compared=("greedy",))


def row(
    mode: str,
    *,
    prompt_id: str = "a",
    turn: int = 1,
    round: int = 1,
    category: str = "x",
    lengths: tuple[int, ...] = (1, 1, 1, 1),
    decode_s: float = 1.0,
    engine_s: float = 0.5,
    prefill_s: float = 0.1,
    tokens: tuple[int, ...] = (1, 2, 3, 4, 5),
) -> ReplyRow:
    """A reply of five tokens, four of them after the first."""
    return ReplyRow(
        round=round,
        prompt_id=prompt_id,
        category=category,
        turn=turn,
        mode=mode,
        finish_reason="length",
        prompt_tokens=3,
        cached_tokens=0,
        new_tokens=len(tokens),
        prefill_s=prefill_s,
        decode_s=decode_s,
        engine_s=engine_s,
        accept_lengths=lengths,
        token_ids=tokens,
    )


def both(prompt_id: str, plain_s: float, medusa_s: float, **changes: Any) -> list[ReplyRow]:
    """The same reply in both greedy modes; Medusa takes two steps, of one and three tokens."""
    plain = row("greedy plain", prompt_id=prompt_id, decode_s=plain_s)
    medusa = row("greedy Medusa", prompt_id=prompt_id, decode_s=medusa_s, lengths=(1, 3))
    return [replace(reply, **changes) for reply in (plain, medusa)]


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


@pytest.fixture(scope="module")
def session(tiny_bundle: Bundle) -> MedusaSession:
    return MedusaSession(tiny_bundle, num_threads=1)


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


def run(*words: str) -> int:
    """`medusa-trt bench` with these arguments."""
    parser = argparse.ArgumentParser()
    cli_bench.add_arguments(parser)
    return cli_bench.run(parser.parse_args(words))


def test_a_whole_run(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        '{"turns": ["hello", "more"], "category": "x"}\n{"prompt": "ho", "category": "y"}\n'
    )
    report_path, plot_path = tmp_path / "report.json", tmp_path / "plot.png"
    common = (str(tiny_bundle.path), "--prompts", str(prompts), "--max-new-tokens", "8")
    assert run(*common, "--threads", "1", "--json", str(report_path), "--plot", str(plot_path)) == 0
    out, err = capsys.readouterr()
    assert "typical Medusa" in out and "category" in out and "NO" not in out
    assert "18 replies, up to about" in err
    report = json.loads(report_path.read_text())
    assert len(report["rows"]) == 18 and report["is_complete"] is True
    assert [mode["same_tokens"] for mode in report["summary"]["modes"]] == [
        None,
        True,
        True,
        None,
        True,
        None,
    ]
    assert report["machine"]["cpu"] and report["machine"]["versions"]["numpy"]
    assert report["setup"]["threads"] == 1 and report["peak_memory_bytes"] > 1e6
    assert plot_path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "p.jsonl",
        "plot.png",
        "report.json",
    ]


def test_different_tokens_are_red_and_the_exit_code_is_1(
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoiled(*arguments: object) -> list[ReplyRow]:
        plain, medusa = both("1", 1, 1)
        return [plain, replace(medusa, token_ids=(9,) * 5)]

    monkeypatch.setattr("medusa_trt.calibration.bench.measure", spoiled)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\n")
    arguments = (str(tiny_bundle.path), "--prompts", str(prompts), "--modes", "greedy")
    assert run(*arguments, "--max-new-tokens", "4") == cli_bench.EXIT_DIFFERENT
    out = capsys.readouterr().out
    assert "NO" in out and "greedy Medusa in prompt 1, turn 1, round 1" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reports_what_was_finished(
    number: signal.Signals,
    interruptible: None,
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: object) -> object:
        yield from both("1", 1, 1)
        yield both("2", 1, 1)[0]
        signal.raise_signal(number)

    monkeypatch.setattr("medusa_trt.calibration.bench.measure", interrupted)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\nother\n")
    arguments = (str(tiny_bundle.path), "--prompts", str(prompts), "--modes", "greedy")
    assert run(*arguments, "--max-new-tokens", "4") == 128 + number
    assert "Interrupted before the end of 2 prompts, 1 round" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plot", "x.pdf"), "must end in .png, .svg, .html"),
        (("--json", "none/x.json"), "existing folder"),
        (("--prompts", "none.txt"), "cannot read the prompts"),
        (("--num-prompts", "0"), "num_prompts is 0"),
        (("--modes", "greedy,fast"), "modes 'greedy,fast'"),
        (("--seed", "-1"), "seed is -1"),
        (("--tree", "bush"), "unknown tree"),
        ((), "is not a bundle"),
    ],
)
def test_mistakes_end_before_the_bundle_is_opened(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(MedusaError, match=message):
        run("/nonexistent", *words)


def test_matplotlib_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MedusaError, match=r"medusa-trt\[bench\]"):
        run("/nonexistent", "--plot", "x.png")


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_plots_in_other_formats(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from medusa_trt.calibration.bench_plot import save_plot

    path = tmp_path / f"plot{suffix}"
    save_plot(report_of(both("a", 2, 1)), path)
    assert "<svg" in path.read_text(encoding="utf-8")


def report_of(rows: list[ReplyRow]) -> BenchReport:
    """A report of these measurements."""
    setup = BenchSetup(
        bundle="b",
        model="m",
        target="ort-cpu",
        precision="fp32",
        num_heads=3,
        tree="t",
        num_nodes=4,
        max_depth=2,
        prompts="MT-bench",
        num_prompts=1,
        rounds=1,
        max_new_tokens=5,
        max_length=100,
        threads=None,
        temperature=0.7,
        seed=0,
    )
    return BenchReport(
        command="medusa-trt bench b",
        date="2026-01-01T00:00:00+00:00",
        duration_s=1,
        is_complete=True,
        num_prompts_done=1,
        peak_memory_bytes=10**6,
        setup=setup,
        machine=Machine.this(),
        summary=summarize(rows, GREEDY.modes, chain_tree(setup.max_depth)),
    )


def test_the_report_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        replace(
            reply, category=f"category [{index % 8}]", decode_s=reply.decode_s * (1 + index / 10)
        )
        for index in range(16)
        for reply in both(str(index), 0.0402, 0.0301)
    ]
    console = Console(width=100)
    print_report(report_of(rows), console)
    out = capsys.readouterr().out
    assert "\u2026" not in out  # nothing was cut
    assert "category [7]" in out


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(MedusaError, match="cannot write"),
        replaced_file(tmp_path / "no" / "x") as t,
    ):
        t.write_text("new")
