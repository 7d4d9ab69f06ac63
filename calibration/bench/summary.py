"""Figures of a benchmark, computed from its measured replies.

A prompt is one sample: the turns of its conversation are pooled, and the median is taken over
rounds. Medians and quartiles are then taken over prompts.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.calibration.bench.options import Mode
from medusa_trt.calibration.noise import Noise
from medusa_trt.calibration.prompts import BenchPrompt

_Value = Callable[[Sequence[ReplyRow]], float | None]


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The first quartile, the median and the third quartile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSummary:
    """Figures of one mode. A figure is None if all replies were too short for it.

    Attributes:
        name: name of the mode.
        num_replies: number of measured replies.
        new_tokens: number of their tokens.
        num_steps: number of verify steps, without prefill.
        tokens_per_s: throughput after the first token.
        speedup: `tokens_per_s` over the baseline's, prompt by prompt.
        speedup_by_prompt: speedup of each prompt.
        step_ratio: time of a step over the baseline's, prompt by prompt, as they follow each other
            in a reply; tokens per step over this are the speedup.
        mean_accept_length: tokens that a step adds.
        accept_histogram: number of steps that added 1, 2, ... tokens, up to the longest step.
        depth_shares: share of steps whose accepted path reached depth 1, 2, ...
        engine_us_per_step: microseconds of a step inside the engine: verify, heads and sampling.
        host_us_per_step: microseconds of the rest: candidates, acceptance, commit and text.
        first_token_ms: milliseconds to the first token in the first turn, in the second, ...
        same_tokens: whether every reply equals its baseline's; None unless the mode is lossless.
    """

    name: str
    num_replies: int
    new_tokens: int
    num_steps: int
    tokens_per_s: Quartiles | None
    speedup: Quartiles | None
    speedup_by_prompt: dict[str, float]
    step_ratio: Quartiles | None
    mean_accept_length: float | None
    accept_histogram: tuple[int, ...]
    depth_shares: tuple[float, ...]
    engine_us_per_step: Quartiles | None
    host_us_per_step: Quartiles | None
    first_token_ms: tuple[Quartiles | None, ...]
    same_tokens: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategorySummary:
    """Figures of a drafting mode in one category; see `ModeSummary`."""

    category: str
    mode: str
    baseline: str
    num_prompts: int
    baseline_tokens_per_s: float | None
    tokens_per_s: float | None
    speedup: Quartiles | None
    mean_accept_length: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A reply of a lossless mode whose tokens differ from its baseline's."""

    mode: str
    prompt_id: str
    turn: int
    round: int


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of a benchmark, with its modes in the given order."""

    modes: tuple[ModeSummary, ...]
    categories: tuple[CategorySummary, ...]
    differences: tuple[Difference, ...]


def summarize(rows: Sequence[ReplyRow], modes: Sequence[Mode]) -> Summary:
    """Computes the figures of a benchmark.

    Args:
        rows: measured replies: every prompt in every mode, in each round.
        modes: the modes and their baselines.
    """
    differences = find_differences(rows, modes)
    categories = list(dict.fromkeys(row.category for row in rows))
    return Summary(
        tuple(_summarize_mode(rows, mode, differences) for mode in modes),
        tuple(
            _summarize_category([row for row in rows if row.category == category], mode, category)
            for category in categories
            for mode in modes
            if mode.drafts
        ),
        differences,
    )


def select_whole_prompts(
    rows: Sequence[ReplyRow], prompts: Iterable[BenchPrompt], num_modes: int
) -> list[ReplyRow]:
    """Keeps the replies of those conversations that every mode has finished in a round."""
    num_wanted = {prompt.id: num_modes * len(prompt.turns) for prompt in prompts}
    counts = Counter((row.round, row.prompt_id) for row in rows)
    return [row for row in rows if counts[row.round, row.prompt_id] == num_wanted[row.prompt_id]]


def find_differences(rows: Iterable[ReplyRow], modes: Iterable[Mode]) -> tuple[Difference, ...]:
    """Finds the first turn that differs in each conversation: later turns have other prompts."""
    baselines = {mode.name: mode.baseline for mode in modes if mode.is_lossless}
    by_reply = {(row.mode, row.round, row.prompt_id, row.turn): row for row in rows}
    first: dict[tuple[str, int, str], Difference] = {}
    for (name, round_, prompt_id, turn), row in by_reply.items():
        baseline = baselines.get(name)
        if baseline is None:
            continue
        if row.token_ids != by_reply[baseline, round_, prompt_id, turn].token_ids:
            difference = Difference(name, prompt_id, turn, round_)
            first.setdefault((name, round_, prompt_id), difference)
    return tuple(first.values())


def find_longest_step(modes: Iterable[ModeSummary]) -> int:
    """Most tokens that a step of any mode added; 1 if there was no step."""
    return max((len(mode.accept_histogram) for mode in modes), default=1)


def compute_quartiles(values: Iterable[float]) -> Quartiles | None:
    """Quartiles of samples, interpolated between neighbours; None if there are no samples."""
    samples = list(values)
    if not samples:
        return None
    low, median, high = np.percentile(samples, (25, 50, 75)).tolist()
    return Quartiles(low, median, high)


def count_accept_lengths(rows: Iterable[ReplyRow]) -> tuple[int, ...]:
    """Counts the steps that added 1, 2, ... tokens, up to the longest step."""
    counts = Counter(length for row in rows for length in row.accept_lengths)
    return tuple(counts[length] for length in range(1, max(counts, default=1) + 1))


def compute_depth_shares(histogram: Sequence[int]) -> tuple[float, ...]:
    """Share of steps whose accepted path reached depth 1, 2, ..., and so added 2, 3, ... tokens.

    Args:
        histogram: number of steps that added 1, 2, ... tokens.
    """
    total = sum(histogram)
    if total == 0:
        return (0.0,) * (len(histogram) - 1)
    return tuple(sum(histogram[depth:]) / total for depth in range(1, len(histogram)))


def tokens_per_s(rows: Sequence[ReplyRow]) -> float | None:
    """Throughput of pooled replies: all tokens but the first ones, over their time."""
    num_tokens = sum(row.new_tokens - 1 for row in rows)
    return num_tokens / sum(row.decode_s for row in rows) if num_tokens else None


def compute_median_by_prompt(rows: Iterable[ReplyRow], value: _Value) -> dict[str, float]:
    """Median over rounds of a value of each prompt.

    Args:
        rows: the replies of one mode.
        value: computes the value of a conversation from its replies, or None if they are too short.
    """
    conversations: dict[tuple[str, int], list[ReplyRow]] = {}
    for row in rows:
        conversations.setdefault((row.prompt_id, row.round), []).append(row)
    values: dict[str, list[float]] = {}
    for (prompt_id, _), conversation in conversations.items():
        if (of_round := value(conversation)) is not None:
            values.setdefault(prompt_id, []).append(of_round)
    return {prompt_id: statistics.median(of_rounds) for prompt_id, of_rounds in values.items()}


def compute_ratio_by_prompt(
    rows: Iterable[ReplyRow], baseline_rows: Iterable[ReplyRow], value: _Value = tokens_per_s
) -> dict[str, float]:
    """Ratio of each prompt's value to the baseline's in the same round; by default the speedup."""
    baselines: dict[tuple[str, int], list[ReplyRow]] = {}
    for row in baseline_rows:
        baselines.setdefault((row.prompt_id, row.round), []).append(row)

    def ratio(conversation: Sequence[ReplyRow]) -> float | None:
        first = conversation[0]
        baseline = value(baselines[first.prompt_id, first.round])
        result = value(conversation)
        return None if result is None or baseline is None else result / baseline

    return compute_median_by_prompt(rows, ratio)


def noise_from_rows(
    rows: Sequence[ReplyRow], modes: Iterable[Mode], free_cores: float | None, threads: int | None
) -> Noise:
    """Finds out how far the time of plain steps in the engine varied, over prompts and rounds."""
    times = [
        [
            row.engine_s / len(row.accept_lengths)
            for row in _of_mode(rows, mode.name)
            if row.accept_lengths
        ]
        for mode in modes
        if not mode.drafts
    ]
    return Noise.from_samples(free_cores, threads, times)


def _summarize_mode(
    rows: Sequence[ReplyRow], mode: Mode, differences: Iterable[Difference]
) -> ModeSummary:
    mode_rows = _of_mode(rows, mode.name)
    baseline = _of_mode(rows, mode.baseline)
    speedups = compute_ratio_by_prompt(mode_rows, baseline) if mode.baseline else {}
    step_ratios = compute_ratio_by_prompt(mode_rows, baseline, _step_s) if mode.baseline else {}
    histogram = count_accept_lengths(mode_rows)
    differs = any(difference.mode == mode.name for difference in differences)
    return ModeSummary(
        name=mode.name,
        num_replies=len(mode_rows),
        new_tokens=sum(row.new_tokens for row in mode_rows),
        num_steps=sum(histogram),
        tokens_per_s=_summarize_by_prompt(mode_rows, tokens_per_s),
        speedup=compute_quartiles(speedups.values()),
        speedup_by_prompt=speedups,
        step_ratio=compute_quartiles(step_ratios.values()),
        mean_accept_length=_mean_accept_length(mode_rows),
        accept_histogram=histogram,
        depth_shares=compute_depth_shares(histogram),
        engine_us_per_step=_summarize_by_prompt(mode_rows, _engine_us_per_step),
        host_us_per_step=_summarize_by_prompt(mode_rows, _host_us_per_step),
        first_token_ms=_first_token_ms(mode_rows),
        same_tokens=not differs if mode.is_lossless else None,
    )


def _summarize_category(rows: Sequence[ReplyRow], mode: Mode, category: str) -> CategorySummary:
    assert mode.baseline is not None
    mode_rows, baseline = _of_mode(rows, mode.name), _of_mode(rows, mode.baseline)
    return CategorySummary(
        category=category,
        mode=mode.name,
        baseline=mode.baseline,
        num_prompts=len({row.prompt_id for row in mode_rows}),
        baseline_tokens_per_s=_compute_median(baseline, tokens_per_s),
        tokens_per_s=_compute_median(mode_rows, tokens_per_s),
        speedup=compute_quartiles(compute_ratio_by_prompt(mode_rows, baseline).values()),
        mean_accept_length=_mean_accept_length(mode_rows),
    )


def _summarize_by_prompt(rows: Iterable[ReplyRow], value: _Value) -> Quartiles | None:
    return compute_quartiles(compute_median_by_prompt(rows, value).values())


def _compute_median(rows: Iterable[ReplyRow], value: _Value) -> float | None:
    of_prompts = _summarize_by_prompt(rows, value)
    return None if of_prompts is None else of_prompts.median


def _of_mode(rows: Iterable[ReplyRow], name: str | None) -> list[ReplyRow]:
    return [row for row in rows if row.mode == name]


def _mean_accept_length(rows: Iterable[ReplyRow]) -> float | None:
    lengths = [length for row in rows for length in row.accept_lengths]
    return statistics.fmean(lengths) if lengths else None


def _step_s(rows: Sequence[ReplyRow]) -> float | None:
    num_steps = sum(len(row.accept_lengths) for row in rows)
    return sum(row.decode_s for row in rows) / num_steps if num_steps else None


def _engine_us_per_step(rows: Sequence[ReplyRow]) -> float | None:
    num_steps = sum(len(row.accept_lengths) for row in rows)
    return 1e6 * sum(row.engine_s for row in rows) / num_steps if num_steps else None


def _host_us_per_step(rows: Sequence[ReplyRow]) -> float | None:
    num_steps = sum(len(row.accept_lengths) for row in rows)
    host_s = sum(row.decode_s - row.engine_s for row in rows)
    return 1e6 * host_s / num_steps if num_steps else None


def _first_token_ms(rows: Sequence[ReplyRow]) -> tuple[Quartiles | None, ...]:
    def first_token_ms(turn: Sequence[ReplyRow]) -> float:
        return 1e3 * statistics.fmean(row.prefill_s for row in turn)

    last = max((row.turn for row in rows), default=0)
    by_turn = ([row for row in rows if row.turn == turn] for turn in range(1, last + 1))
    return tuple(_summarize_by_prompt(turn, first_token_ms) for turn in by_turn)
