"""The figures of requests that ran at the same time, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from rich.table import Table

from medusa_trt.calibration.bench.load import Load, LoadRun


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """The figures of a load in one mode; medians over its rounds, or over all requests or tokens.

    Attributes:
        load: how requests came.
        mode: "plain" or "Medusa".
        num_requests: requests in all rounds.
        tokens_per_s: tokens of all requests over the time of the whole run.
        tokens_per_s_each: tokens per second of a request after its first token.
        first_token_ms: median and 95th percentile.
        between_tokens_ms: median and 95th percentile.
        mean_nodes: nodes of a tree.
        speedup: `tokens_per_s` over that of plain decoding, round by round; None for it.
        num_different: replies that differ from plain decoding's to the same prompt.
    """

    load: Load
    mode: str
    num_requests: int
    tokens_per_s: float
    tokens_per_s_each: float
    first_token_ms: tuple[float, float]
    between_tokens_ms: tuple[float, float]
    mean_nodes: float
    speedup: float | None
    num_different: int


def summarize_loads(runs: Sequence[LoadRun]) -> list[LoadFigures]:
    """Computes the figures of each load and mode, in the order of the loads."""
    groups: dict[tuple[Load, str], list[LoadRun]] = {}
    for run in runs:
        groups.setdefault((run.rows[0].load, run.rows[0].mode), []).append(run)
    figures = []
    for load in dict.fromkeys(load for load, _ in groups):
        plain = groups[load, "plain"]
        figures.append(_summarize(load, "plain", plain, None))
        figures.append(_summarize(load, "Medusa", groups[load, "Medusa"], plain))
    return figures


def make_table(figures: Sequence[LoadFigures]) -> Table:
    """Makes the table for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in (
        "requests",
        "mode",
        "tokens/s\nin all",
        "speedup",
        "tokens/s\neach",
        "first token ms\nmedian, 95 %",
        "between tokens ms\nmedian, 95 %",
        "nodes",
        "same\ntokens",
    ):
        table.add_column(name, justify="left" if name in ("requests", "mode") else "right")
    for row in figures:
        is_plain = row.speedup is None
        table.add_row(
            row.load.text if is_plain else "",
            row.mode,
            f"{row.tokens_per_s:.0f}",
            "-" if row.speedup is None else f"{row.speedup:.2f}",
            f"{row.tokens_per_s_each:.1f}",
            "{:.0f}, {:.0f}".format(*row.first_token_ms),
            "{:.1f}, {:.1f}".format(*row.between_tokens_ms),
            f"{row.mean_nodes:.1f}",
            "-" if is_plain else _describe_difference(row),
        )
    return table


def encode_loads(figures: Sequence[LoadFigures], runs: Sequence[LoadRun]) -> bytes:
    """Encodes the figures and all that was measured as JSON."""
    return msgspec.json.format(msgspec.json.encode({"figures": figures, "runs": runs})) + b"\n"


def _describe_difference(row: LoadFigures) -> str:
    return f"{row.num_different} differ" if row.num_different else "yes"


def _summarize(
    load: Load, mode: str, runs: Sequence[LoadRun], plain: Sequence[LoadRun] | None
) -> LoadFigures:
    rows = [row for run in runs for row in run.rows]
    gaps = [gap for row in rows for gap in row.gaps_s]
    first = [row.first_token_s for row in rows]
    rates = [1 / np.mean(row.gaps_s) for row in rows if row.gaps_s]
    speedup, num_different = None, 0
    if plain is not None:
        pairs = zip(runs, plain, strict=True)
        speedup = float(np.median([_rate(run) / _rate(other) for run, other in pairs]))
        expected = {row.prompt: row.token_ids for run in plain for row in run.rows}
        num_different = sum(row.token_ids != expected[row.prompt] for row in rows)
    return LoadFigures(
        load=load,
        mode=mode,
        num_requests=len(rows),
        tokens_per_s=float(np.median([_rate(run) for run in runs])),
        tokens_per_s_each=float(np.median(rates)) if rates else 0.0,
        first_token_ms=_middle_and_high(first),
        between_tokens_ms=_middle_and_high(gaps),
        mean_nodes=float(np.mean([run.mean_nodes for run in runs])),
        speedup=speedup,
        num_different=num_different,
    )


def _rate(run: LoadRun) -> float:
    return sum(len(row.token_ids) for row in run.rows) / run.duration_s


def _middle_and_high(seconds: Sequence[float]) -> tuple[float, float]:
    if not seconds:
        return 0.0, 0.0
    middle, high = np.percentile(seconds, (50, 95)).tolist()
    return 1e3 * middle, 1e3 * high
