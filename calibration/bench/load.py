"""Runs many requests at the same time, plain and with Medusa, and measures what each one sees."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.errors import EngineError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import load_tree

MODES = ("plain", "Medusa")

_LEAST_REQUESTS = 2
"""Requests for each that runs at the same time, so that most of a measurement is at full load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests come.

    Attributes:
        concurrency: most requests that run at the same time.
        arrivals_per_s: mean number of requests per second, at random times (Poisson); None if the
            next request comes when one ends.
    """

    concurrency: int
    arrivals_per_s: float | None = None

    @property
    def text(self) -> str:
        """Describes the load."""
        if self.arrivals_per_s is None:
            return f"{self.concurrency} at a time"
        return f"{self.arrivals_per_s:g} a second"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """One measured request.

    Attributes:
        round: number of the round, from 1.
        load: how requests came.
        mode: "plain" or "Medusa".
        prompt: index of the prompt.
        first_token_s: time from the arrival of the request to its first token.
        gaps_s: time per token, for each token after the first: the tokens of a step share the time
            since the step before.
        token_ids: the reply.
    """

    round: int
    load: Load
    mode: str
    prompt: int
    first_token_s: float
    gaps_s: tuple[float, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """All requests of one load in one mode and round.

    Attributes:
        rows: the requests.
        duration_s: time from the first arrival to the last token.
        mean_nodes: nodes of a sequence's tree, on average over all steps.
    """

    rows: tuple[LoadRow, ...]
    duration_s: float
    mean_nodes: float


def list_loads(options: BenchOptions) -> list[Load]:
    """Lists the loads that a benchmark measures."""
    most = max(options.concurrency, default=8)
    closed = [Load(concurrency=number) for number in options.concurrency]
    return closed + [Load(concurrency=most, arrivals_per_s=rate) for rate in options.arrivals]


def measure_loads(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    options: BenchOptions,
    advance: Callable[[], None],
) -> list[LoadRun]:
    """Measures every load in both modes; the modes take turns.

    Args:
        session: holds as many requests as the largest load.
        prompts: their first turns are the requests, as often as needed.
        options: how the benchmark is run.
        advance: called after each request.

    Raises:
        EngineError: the engine failed.
    """
    runs = []
    loads = list_loads(options)
    for mode in MODES:  # A first request of each mode, which allocates and is not counted.
        _run(session, prompts[:1], options, Load(concurrency=1), mode, 0, lambda: None)
    for round_ in range(1, options.rounds + 1):
        for index, load in enumerate(loads):
            modes = MODES if (round_ + index) % 2 else MODES[::-1]
            for mode in modes:
                # Rows of earlier runs would be found in the cache, which tells nothing of a load.
                session.scheduler.forget()
                runs.append(_run(session, prompts, options, load, mode, round_, advance))
    return runs


def count_requests(prompts: Sequence[BenchPrompt], options: BenchOptions) -> int:
    """Counts the requests that `measure_loads` makes."""
    per_round = sum(_num_requests(len(prompts), load) for load in list_loads(options))
    return len(MODES) * options.rounds * per_round


def _num_requests(num_prompts: int, load: Load) -> int:
    return max(num_prompts, _LEAST_REQUESTS * load.concurrency)


def _run(
    session: MedusaSession,
    prompts: Sequence[BenchPrompt],
    options: BenchOptions,
    load: Load,
    mode: str,
    round_: int,
    advance: Callable[[], None],
) -> LoadRun:
    reply_options = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        tree=load_tree("plain") if mode == "plain" else options.tree,
    )
    if mode == "plain":
        reply_options = replace(reply_options, lookup_ngram=0)
    requests = [
        session.make_request(
            [{"role": "user", "content": prompts[index % len(prompts)].turns[0]}], reply_options
        )
        for index in range(_num_requests(len(prompts), load))
    ]
    times = _draw_arrival_times(len(requests), load, options.seed + round_)
    scheduler, decoder = session.scheduler, session.decoder
    rows_before, steps_before = decoder.num_rows, decoder.num_sequence_steps
    arrived: dict[int, tuple[int, float]] = {}
    last: dict[int, float] = {}
    gaps: dict[int, list[float]] = {}
    first: dict[int, float] = {}
    rows: list[LoadRow] = []
    start, num_added = time.perf_counter(), 0
    while len(rows) < len(requests):
        now = time.perf_counter() - start
        while num_added < len(requests) and _comes(times, num_added, now, len(arrived), load):
            arrival = now if times is None else times[num_added]
            number = scheduler.add(requests[num_added])
            arrived[number], gaps[number] = (num_added, arrival), []
            num_added += 1
        if scheduler.is_idle and times is not None:
            time.sleep(max(0.0, times[num_added] - now))
            continue
        for number, event, error in scheduler.step():
            if error is not None:
                raise EngineError(str(error)) from error
            now = time.perf_counter() - start
            count = len(event.token_ids)
            if count and number not in first:
                first[number] = now
            elif count:
                gaps[number] += [(now - last[number]) / count] * count
            last[number] = now
            if event.generation is None:
                continue
            index, arrival = arrived.pop(number)
            rows.append(
                LoadRow(
                    round=round_,
                    load=load,
                    mode=mode,
                    prompt=index % len(prompts),
                    first_token_s=first[number] - arrival,
                    gaps_s=tuple(gaps.pop(number)),
                    token_ids=tuple(event.generation.token_ids),
                )
            )
            advance()
    steps = decoder.num_sequence_steps - steps_before
    return LoadRun(
        rows=tuple(rows),
        duration_s=time.perf_counter() - start,
        mean_nodes=(decoder.num_rows - rows_before) / max(1, steps),
    )


def _draw_arrival_times(count: int, load: Load, seed: int) -> list[float] | None:
    """Seconds at which requests arrive; None if each follows the end of another."""
    if load.arrivals_per_s is None:
        return None
    pauses = np.random.default_rng(seed).exponential(1 / load.arrivals_per_s, count)
    times: list[float] = (np.cumsum(pauses) - pauses[0]).tolist()
    return times


def _comes(
    times: Sequence[float] | None, index: int, now: float, num_running: int, load: Load
) -> bool:
    """Whether the next request is there."""
    return num_running < load.concurrency if times is None else times[index] <= now
