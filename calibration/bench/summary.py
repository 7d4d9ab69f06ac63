"""Figures of a benchmark, made of its measured replies by pure functions.

A prompt is one sample: the turns of its conversation are pooled, and rounds give one median.
Medians and quartiles are then taken over prompts.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.calibration.bench.options import Mode
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.tree_configs import MedusaTree

_Value = Callable[[Sequence[ReplyRow]], float | None]


@dataclass(frozen=True, slots=True)
class Quartiles:
    """A median between the first and the third quartile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSummary:
    """One mode. What no reply was long enough to give is None.

    Attributes:
        name: the mode's.
        num_replies: replies measured.
        new_tokens: their tokens.
        num_steps: verify steps, the prefill not among them.
        tokens_per_s: decoding speed after the first token.
        speedup: `tokens_per_s` over the baseline's, each prompt with itself.
        speedup_by_prompt: the same for each prompt.
        mean_accept_length: tokens of a step.
        accept_histogram: steps that added 1, 2, ... tokens, up to the largest depth plus 1.
        depth_shares: share of steps whose accepted path reached depth 1, 2, ... of the tree or of
            the chain that prompt lookup drafts.
        engine_us_per_step: microseconds of a step inside the engine: verify, heads and sampling.
        host_us_per_step: the rest of a step: candidates, acceptance, commit and text.
        first_token_ms: milliseconds to the first token in the first turn, in the second, ...
        same_tokens: whether every reply has its baseline's tokens; None where it need not.
    """

    name: str
    num_replies: int
    new_tokens: int
    num_steps: int
    tokens_per_s: Quartiles | None
    speedup: Quartiles | None
    speedup_by_prompt: dict[str, float]
    mean_accept_length: float | None
    accept_histogram: tuple[int, ...]
    depth_shares: tuple[float, ...]
    engine_us_per_step: Quartiles | None
    host_us_per_step: Quartiles | None
    first_token_ms: tuple[Quartiles | None, ...]
    same_tokens: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategorySummary:
    """One mode with drafts in one category; see `ModeSummary`."""

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
    """A reply whose tokens are not its baseline's, though they must be."""

    mode: str
    prompt_id: str
    turn: int
    round: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a benchmark found, modes in the order they were given."""

    modes: tuple[ModeSummary, ...]
    categories: tuple[CategorySummary, ...]
    differences: tuple[Difference, ...]


def summarize(rows: Sequence[ReplyRow], modes: Sequence[Mode], tree: MedusaTree) -> Summary:
    """Aggregates measurements.

    Args:
        rows: in each round every prompt in every mode.
        modes: the modes, baselines among them.
        tree: the draft tree. Prompt lookup drafts a chain of as many nodes.
    """
    differences = find_differences(rows, modes)
    categories = list(dict.fromkeys(row.category for row in rows))
    return Summary(
        tuple(_mode_summary(rows, mode, tree, differences) for mode in modes),
        tuple(
            _category_summary([row for row in rows if row.category == category], mode, category)
            for category in categories
            for mode in modes
            if mode.drafts
        ),
        differences,
    )


def whole_prompts(
    rows: Sequence[ReplyRow], prompts: Iterable[BenchPrompt], num_modes: int
) -> list[ReplyRow]:
    """The rows of conversations that every mode has finished, after an interruption."""
    wanted = {prompt.id: num_modes * len(prompt.turns) for prompt in prompts}
    found = Counter((row.round, row.prompt_id) for row in rows)
    return [row for row in rows if found[row.round, row.prompt_id] == wanted[row.prompt_id]]


def find_differences(rows: Iterable[ReplyRow], modes: Iterable[Mode]) -> tuple[Difference, ...]:
    """The first differing turn of each conversation: the turns after it ask something else."""
    baselines = {mode.name: mode.baseline for mode in modes if mode.is_lossless}
    by_reply = {(row.mode, row.round, row.prompt_id, row.turn): row for row in rows}
    found: dict[tuple[str, int, str], Difference] = {}
    for (name, round_, prompt_id, turn), row in by_reply.items():
        baseline = baselines.get(name)
        if baseline is None:
            continue
        if row.token_ids != by_reply[baseline, round_, prompt_id, turn].token_ids:
            difference = Difference(name, prompt_id, turn, round_)
            found.setdefault((name, round_, prompt_id), difference)
    return tuple(found.values())


def longest_step(modes: Iterable[ModeSummary]) -> int:
    """Most tokens that a step of any of the modes added; 1 if there was no step."""
    histograms = (enumerate(mode.accept_histogram, start=1) for mode in modes)
    return max((length for each in histograms for length, count in each if count), default=1)


def quartiles(values: Iterable[float]) -> Quartiles | None:
    """Quartiles of samples, interpolated between neighbours; None of none."""
    samples = list(values)
    if not samples:
        return None
    low, median, high = np.percentile(samples, (25, 50, 75)).tolist()
    return Quartiles(low, median, high)


def accept_histogram(rows: Iterable[ReplyRow], max_depth: int) -> tuple[int, ...]:
    """Number of steps that added 1, 2, ... max_depth + 1 tokens."""
    counts = Counter(length for row in rows for length in row.accept_lengths)
    assert not counts or max(counts) <= max_depth + 1
    return tuple(counts[length] for length in range(1, max_depth + 2))


def depth_shares(histogram: Sequence[int]) -> tuple[float, ...]:
    """Share of steps whose accepted path reached depth 1, 2, ...: they added more tokens than that.

    Args:
        histogram: steps that added 1, 2, ... tokens.
    """
    total = sum(histogram)
    if total == 0:
        return (0.0,) * (len(histogram) - 1)
    return tuple(sum(histogram[depth:]) / total for depth in range(1, len(histogram)))


def tokens_per_s(rows: Sequence[ReplyRow]) -> float | None:
    """Decoding speed of pooled replies: tokens after each first one over their time."""
    num_tokens = sum(row.new_tokens - 1 for row in rows)
    return num_tokens / sum(row.decode_s for row in rows) if num_tokens else None


def median_by_prompt(rows: Iterable[ReplyRow], value: _Value) -> dict[str, float]:
    """A value for each prompt, of its pooled turns: the median over rounds.

    Args:
        rows: of one mode.
        value: of a conversation's rows; None where they do not have it.
    """
    conversations: dict[tuple[str, int], list[ReplyRow]] = {}
    for row in rows:
        conversations.setdefault((row.prompt_id, row.round), []).append(row)
    values: dict[str, list[float]] = {}
    for (prompt_id, _), conversation in conversations.items():
        if (found := value(conversation)) is not None:
            values.setdefault(prompt_id, []).append(found)
    return {prompt_id: statistics.median(found) for prompt_id, found in values.items()}


def speedup_by_prompt(
    rows: Iterable[ReplyRow], baseline_rows: Iterable[ReplyRow]
) -> dict[str, float]:
    """Decoding speed over the baseline's in the same round, for each prompt."""
    baselines: dict[tuple[str, int], list[ReplyRow]] = {}
    for row in baseline_rows:
        baselines.setdefault((row.prompt_id, row.round), []).append(row)

    def speedup(conversation: Sequence[ReplyRow]) -> float | None:
        first = conversation[0]
        baseline = tokens_per_s(baselines[first.prompt_id, first.round])
        own = tokens_per_s(conversation)
        return None if own is None or baseline is None else own / baseline

    return median_by_prompt(rows, speedup)


def _mode_summary(
    rows: Sequence[ReplyRow], mode: Mode, tree: MedusaTree, differences: Iterable[Difference]
) -> ModeSummary:
    own = _of_mode(rows, mode.name)
    speedups = speedup_by_prompt(own, _of_mode(rows, mode.baseline)) if mode.baseline else {}
    max_depth = (tree.num_nodes - 1 if mode.copies else tree.max_depth) if mode.drafts else 0
    histogram = accept_histogram(own, max_depth)
    differs = any(difference.mode == mode.name for difference in differences)
    return ModeSummary(
        name=mode.name,
        num_replies=len(own),
        new_tokens=sum(row.new_tokens for row in own),
        num_steps=sum(histogram),
        tokens_per_s=quartiles(median_by_prompt(own, tokens_per_s).values()),
        speedup=quartiles(speedups.values()),
        speedup_by_prompt=speedups,
        mean_accept_length=_mean_accept_length(own),
        accept_histogram=histogram,
        depth_shares=depth_shares(histogram),
        engine_us_per_step=quartiles(median_by_prompt(own, _engine_us_per_step).values()),
        host_us_per_step=quartiles(median_by_prompt(own, _host_us_per_step).values()),
        first_token_ms=_first_token_ms(own),
        same_tokens=not differs if mode.is_lossless else None,
    )


def _category_summary(rows: Sequence[ReplyRow], mode: Mode, category: str) -> CategorySummary:
    assert mode.baseline is not None
    own, baseline = _of_mode(rows, mode.name), _of_mode(rows, mode.baseline)
    return CategorySummary(
        category=category,
        mode=mode.name,
        baseline=mode.baseline,
        num_prompts=len({row.prompt_id for row in own}),
        baseline_tokens_per_s=_median(median_by_prompt(baseline, tokens_per_s).values()),
        tokens_per_s=_median(median_by_prompt(own, tokens_per_s).values()),
        speedup=quartiles(speedup_by_prompt(own, baseline).values()),
        mean_accept_length=_mean_accept_length(own),
    )


def _median(values: Iterable[float]) -> float | None:
    found = quartiles(values)
    return None if found is None else found.median


def _of_mode(rows: Iterable[ReplyRow], name: str | None) -> list[ReplyRow]:
    return [row for row in rows if row.mode == name]


def _mean_accept_length(rows: Iterable[ReplyRow]) -> float | None:
    lengths = [length for row in rows for length in row.accept_lengths]
    return statistics.fmean(lengths) if lengths else None


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
    return tuple(quartiles(median_by_prompt(turn, first_token_ms).values()) for turn in by_turn)
