"""Contenders of `peers.py` that answer several requests at the same time, and their table."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

_MEDUSA = "-medusa"


class LoadRound(Protocol):
    """What the table shows of a round of requests, some at the same time."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all replies over the time of the round."""

    @property
    def first_token_s(self) -> list[float]:
        """Seconds from each request to its first token."""

    @property
    def between_tokens_s(self) -> list[float]:
        """Mean seconds between the tokens of each reply."""

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident memory so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLoad:
    """The replies of one contender to all prompts of one round.

    Attributes:
        contender: name of the contender.
        threads: its number of threads.
        concurrency: most requests at the same time.
        round: number of the round, from 0.
        token_ids: the replies.
        token_times_s: for each reply, the time of each of its tokens since the start; tokens of
            one step have the same time.
        duration_s: seconds from the start to the last token.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    contender: str
    threads: int
    concurrency: int
    round: int
    token_ids: list[list[int]]
    token_times_s: list[list[float]]
    duration_s: float
    peak_memory_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all replies over the time of the round."""
        return sum(map(len, self.token_ids)) / self.duration_s

    @property
    def first_token_s(self) -> list[float]:
        """Seconds from each request's arrival to its first token.

        As many requests as may run at the same time arrive at the start, and one more whenever a
        reply ends.
        """
        ends = sorted(times[-1] for times in self.token_times_s)
        arrivals = [0.0] * self.concurrency + ends
        return [
            times[0] - arrival for times, arrival in zip(self.token_times_s, arrivals, strict=False)
        ]

    @property
    def between_tokens_s(self) -> list[float]:
        """Mean seconds between the tokens of each reply."""
        return [
            (times[-1] - times[0]) / (len(times) - 1)
            for times in self.token_times_s
            if len(times) > 1
        ]


def print_loads(loads: Sequence[PeerLoad], console: Console) -> None:
    """Prints a table for each number of threads and of requests at the same time."""
    for threads, concurrency in sorted({(load.threads, load.concurrency) for load in loads}):
        rounds: dict[str, list[PeerLoad]] = {}
        for load in loads:
            if (load.threads, load.concurrency) == (threads, concurrency):
                rounds.setdefault(load.contender, []).append(load)
        title = f"{concurrency} at the same time, {threads} thread{'s' if threads > 1 else ''}"
        medusa = [name for name in rounds if name.endswith(_MEDUSA)]
        fastest = max(medusa, key=lambda name: _speed(rounds[name]), default=None)
        console.print(make_load_table(title, rounds, fastest))
    num_medusa = sum(len(load.token_ids) for load in loads if load.contender.endswith(_MEDUSA))
    if num_medusa:
        num_equal = num_medusa - count_different(loads)
        console.print(f"{num_equal} of {num_medusa} replies of Medusa have plain decoding's tokens")


def count_different(loads: Sequence[PeerLoad]) -> int:
    """Counts Medusa's replies whose tokens are not those of plain decoding in the same round."""
    plain = {
        (load.contender, load.threads, load.concurrency, load.round): load.token_ids
        for load in loads
    }
    num_different = 0
    for load in loads:
        if load.contender.endswith(_MEDUSA):
            name = load.contender.removesuffix(_MEDUSA) + "-plain"
            key = (name, load.threads, load.concurrency, load.round)
            num_different += sum(map(ne, load.token_ids, plain.get(key, load.token_ids)))
    return num_different


def make_load_table(
    title: str, rounds: Mapping[str, Sequence[LoadRound]], reference: str | None
) -> Table:
    """Makes a table with a line for each contender, the fastest first.

    Args:
        title: what was measured.
        rounds: the rounds of each contender.
        reference: the contender whose speed is divided by that of the others; None for none.
    """
    table = Table(title=f"{title}, medians of {max(map(len, rounds.values()))} rounds")
    table.add_column("contender", no_wrap=True)
    for column in (
        "tok/s in all",
        f"{reference}, times as fast" if reference else "",
        "first token ms: median, 95 %",
        "between tokens ms: median, 95 %",
        "peak MB",
    ):
        table.add_column(column, justify="right")
    for name in sorted(rounds, key=lambda name: _speed(rounds[name]), reverse=True):
        speed = _speed(rounds[name])
        table.add_row(
            name,
            f"{speed:.0f}",
            f"{_speed(rounds[reference]) / speed:.2f}x" if reference else "",
            _spread(rounds[name], lambda load: load.first_token_s),
            _spread(rounds[name], lambda load: load.between_tokens_s),
            f"{max(load.peak_memory_bytes for load in rounds[name]) / 1e6:.0f}",
        )
    return table


def _speed(rounds: Sequence[LoadRound]) -> float:
    return statistics.median(load.tokens_per_s for load in rounds)


def _spread(rounds: Sequence[LoadRound], choose: Callable[[LoadRound], list[float]]) -> str:
    seconds = [value for load in rounds for value in choose(load)]
    middle, high = 1e3 * np.percentile(seconds, (50, 95))
    return f"{middle:.1f}, {high:.1f}"
