"""A benchmark's report for a terminal of 100 columns."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medusa_trt.calibration.bench.report import BenchReport
from medusa_trt.calibration.bench.summary import (
    CategorySummary,
    Difference,
    ModeSummary,
    Quartiles,
    Summary,
    find_longest_step,
)

_MAX_DIFFERENCES = 8
"""Largest number of differences that are listed one by one."""

_NONE = "-"


def print_report(report: BenchReport, console: Console) -> None:
    """Prints the tables, and in red the replies of lossless modes that differ."""
    summary = report.summary
    console.print(_header(report), highlight=False, markup=False, soft_wrap=True)
    tables = [tabulate_modes(summary.modes), _accept_table(summary.modes)]
    categories = select_main_categories(summary)
    if len(categories) > 1:
        tables.append(_category_table(categories))
    for table in tables:
        console.print(table)
    console.print(
        "Quartiles are over prompts, in brackets. Speedup: over plain decoding with the same "
        "sampling,\nprompt by prompt: tokens per step over the time of a step, given against plain "
        f"decoding's.\nPeak memory: {report.peak_memory_bytes / 1e6:.0f} MB.",
        highlight=False,
    )
    if report.noise.warning is not None:
        console.print(report.noise.warning, style="yellow", highlight=False, markup=False)
    if summary.differences:
        text = _differences_text(summary.differences)
        console.print(text, style="bold red", highlight=False, markup=False)


def select_main_categories(summary: Summary) -> list[CategorySummary]:
    """Categories of the first drafting mode, which is greedy Medusa if that was measured."""
    first = summary.categories[0].mode
    return [category for category in summary.categories if category.mode == first]


def _header(report: BenchReport) -> str:
    setup, machine = report.setup, report.machine
    threads = _count(setup.threads, "thread") if setup.threads else "threads as the engine chooses"
    num_replies = report.summary.modes[0].num_replies
    sampled = f"sampled at temperature {setup.temperature:g}, seed {setup.seed}"
    if any(mode.name.startswith("typical") for mode in report.summary.modes):
        sampled += f"; typical acceptance with ε {setup.posterior_threshold:g}, δ "
        sampled += f"{setup.posterior_alpha:.3g}"
    planned = f"{_count(setup.num_prompts, 'prompt')}, {_count(setup.rounds, 'round')}"
    return (
        f"\n{setup.model} on {setup.target}, {setup.precision}: {setup.num_heads} heads, "
        f"{setup.tree_text}\n"
        f"{machine.cpu}, {_count(machine.num_usable_cores, 'core')}, "
        f"{machine.memory_bytes / 2**30:.0f} GiB; {threads}"
        f"{f', {machine.kernels} kernels' if machine.kernels else ''}\n"
        f"{_count(report.num_prompts_done, 'prompt')} of {setup.prompts}, "
        f"{_count(num_replies, 'reply', 'replies')} a mode of up to {setup.max_new_tokens} tokens; "
        f"{sampled}\n"
        + (f"Interrupted before the end of {planned}\n" if not report.is_complete else "")
    )


def tabulate_modes(modes: Sequence[ModeSummary]) -> Table:
    """Lists the figures of each mode."""
    table = _table(
        "mode",
        "tokens/s",
        "speedup",
        "tokens\na step",
        "step over\nplain",
        "engine\nµs/step",
        "host\nµs/step",
        "first\ntoken ms",
        "same\ntokens",
    )
    for mode in modes:
        same = {True: "yes", False: "[bold red]NO[/bold red]", None: _NONE}[mode.same_tokens]
        table.add_row(
            mode.name,
            _spread(mode.tokens_per_s, 1),
            _spread(mode.speedup, 2),
            _number(mode.mean_accept_length, 2),
            _number(mode.step_ratio.median if mode.step_ratio else None, 2),
            _median(mode.engine_us_per_step),
            _median(mode.host_us_per_step),
            ", ".join(_median(turn) for turn in mode.first_token_ms[:2]),
            same,
        )
    return table


def _accept_table(modes: Sequence[ModeSummary]) -> Table:
    """Histogram of acceptance lengths, and the share of steps that reached each depth."""
    drafting = [mode for mode in modes if mode.depth_shares]
    columns = [f"{mode.name}\nsteps  reached" for mode in drafting]
    table = _table("tokens\na step", "draft\ndepth", *columns)
    for depth in range(find_longest_step(drafting)):
        cells = []
        for mode in drafting:
            if depth >= len(mode.accept_histogram):
                cells.append("")
                continue
            share = mode.accept_histogram[depth] / max(1, mode.num_steps)
            reached = (1.0, *mode.depth_shares)[depth]
            cells.append(f"{share:.1%}  {reached:7.1%}")
        table.add_row(str(depth + 1), str(depth), *cells)
    return table


def _category_table(categories: Sequence[CategorySummary]) -> Table:
    mode, baseline = categories[0].mode, categories[0].baseline
    table = _table(
        "category",
        "prompts",
        f"{baseline}\ntokens/s",
        f"{mode}\ntokens/s",
        "speedup",
        "tokens\na step",
    )
    for row in categories:
        table.add_row(
            escape(row.category) or _NONE,
            str(row.num_prompts),
            _number(row.baseline_tokens_per_s, 1),
            _number(row.tokens_per_s, 1),
            _spread(row.speedup, 2),
            _number(row.mean_accept_length, 2),
        )
    return table


def _differences_text(differences: Sequence[Difference]) -> str:
    lines = ["Tokens differ from those of plain decoding, please report this:"]
    for difference in differences[:_MAX_DIFFERENCES]:
        place = f"prompt {difference.prompt_id}, turn {difference.turn}, round {difference.round}"
        lines.append(f"  {difference.mode} in {place}")
    if len(differences) > _MAX_DIFFERENCES:
        lines.append(f"  and {len(differences) - _MAX_DIFFERENCES} more")
    return "\n".join(lines)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _spread(values: Quartiles | None, digits: int) -> str:
    if values is None:
        return _NONE
    if values.high >= 1000:  # Keeps the columns narrow.
        digits = 0
    return f"{values.median:.{digits}f} ({values.low:.{digits}f}-{values.high:.{digits}f})"


def _median(values: Quartiles | None) -> str:
    return _NONE if values is None else f"{values.median:.0f}"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _count(number: int, word: str, plural: str | None = None) -> str:
    return f"{number} {word if number == 1 else plural or word + 's'}"
