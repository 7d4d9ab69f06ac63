"""Measures step times of a session: whole steps, as in a user's reply."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.noise import CoreWatch
from medusa_trt.calibration.options import LatencyOptions
from medusa_trt.calibration.prompts import load_self_generated_prompts
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.replies import generate_whole_reply
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import Generation, GenerationStats, MedusaSession
from medusa_trt.tree_configs import MedusaTree

_WARM_UP_TOKENS = 2

Point = tuple[int, int, int]
"""Round, context and number of nodes of a sample."""


def fit_to_session(session: MedusaSession, options: LatencyOptions) -> LatencyOptions:
    """Drops trees that are too large for a session, and shortens contexts that are too long.

    Raises:
        CalibrationError: the session is too short for a single sample.
    """
    max_nodes = session.engine.capacity - session.max_length
    if (heads := session.bundle.manifest.heads) is not None:
        num_paths = sum(heads.top_k**depth for depth in range(heads.num_heads + 1))
        max_nodes = min(num_paths, max_nodes)
    longest = session.max_length - options.num_tokens - 1
    if longest < 1:
        raise CalibrationError(
            f"the session holds {session.max_length} tokens, one sample needs "
            f"{options.num_tokens + 2}: raise --max-length"
        )
    return replace(
        options,
        sizes=tuple(size for size in options.sizes if size <= max_nodes),
        contexts=tuple(min(context, longest) for context in options.contexts),
    )


def list_missing_points(options: LatencyOptions, records: Iterable[LatencyRecord]) -> list[Point]:
    """Lists the samples that were not taken yet, round by round, sizes in random order.

    Other work on the machine comes and goes. In rounds it affects every size alike. The records are
    of the machine, number of threads and batch size that are to be measured.
    """
    done = {(record.round, record.context, record.num_nodes) for record in records}
    return [
        point
        for round_ in range(1, options.rounds + 1)
        for context in options.contexts
        for size in np.random.default_rng([round_, context]).permutation(options.sizes).tolist()
        if (point := (round_, context, size)) not in done
    ]


class LatencyMeter:
    """Takes samples on one session."""

    def __init__(
        self,
        session: MedusaSession,
        options: LatencyOptions,
        trees: Mapping[int, MedusaTree],
        machine: str,
        threads: int | None,
    ) -> None:
        """Prepares a text to put before the steps.

        The options come from `fit_to_session`; `trees` holds a tree of each of their sizes.
        """
        self._session, self._options, self._trees = session, options, trees
        self._machine, self._threads, self._heads_s = machine, threads, 0.0
        self._text = _make_long_text(session, max(options.contexts))

    def measure(
        self, points: Sequence[Point], log: RecordLog[LatencyRecord], advance: Callable[[], None]
    ) -> None:
        """Takes the samples and appends them to the log.

        Raises:
            KeyboardInterrupt: on Ctrl-C; samples that were taken whole are kept.
        """
        for round_, context, num_nodes in points:
            cores = CoreWatch()
            stats = self._sample(context, num_nodes)
            num_steps = len(stats.accept_lengths)
            log.append(
                LatencyRecord(
                    machine=self._machine,
                    threads=self._threads,
                    batch_size=self._options.batch_size,
                    context=context,
                    num_nodes=num_nodes,
                    round=round_,
                    num_steps=num_steps,
                    step_ms=1e3 * stats.decode_s / num_steps,
                    engine_ms=1e3 * stats.engine_s / num_steps,
                    heads_ms=1e3 * self._heads_s / num_steps,
                    free_cores=cores.count_free_cores(),
                )
            )
            advance()

    def estimate_s(self, points: Sequence[Point]) -> float:
        """Estimates the seconds that the samples take, from the smallest and the largest one.

        The time in between is assumed to be linear in the number of nodes.
        """
        if not points:
            return 0.0
        sizes = [num_nodes for _, _, num_nodes in points]
        low, high = min(sizes), max(sizes)
        context = max(context for _, context, _ in points)
        times = []
        for num_nodes in (low, high):
            self._sample(context, num_nodes)
            start = time.perf_counter()
            self._sample(context, num_nodes)
            times.append(time.perf_counter() - start)
        return float(np.interp(sizes, (low, high + 1e-9), times).sum())

    def _sample(self, context: int, num_nodes: int) -> GenerationStats:
        """Measures a few steps, after a shorter run that prepares the engine for this tree."""
        drafter = self._session.decoder.drafter
        for num_tokens in (_WARM_UP_TOKENS, self._options.num_tokens):
            begin_s = drafter.engine_s
            reply = self._reply(
                self._text[:context],
                GenerationOptions(
                    max_new_tokens=num_tokens,
                    ignore_eos=True,
                    tree=self._trees[num_nodes],
                    lookup_ngram=0,
                ),
            )
            self._heads_s = drafter.engine_s - begin_s
        return reply.stats

    def _reply(self, prompt_ids: list[int], options: GenerationOptions) -> Generation:
        """Generates equal sequences in all slots, so that they end together.

        The statistics are the last sequence's, which begin when all are prefilled.
        """
        if self._options.batch_size == 1:
            return generate_whole_reply(self._session, prompt_ids, options)
        return self._session.generate_batch([prompt_ids] * self._options.batch_size, options)[-1]


def _make_long_text(session: MedusaSession, num_tokens: int) -> list[int]:
    """Token ids of ordinary text, `num_tokens` of them."""

    def tokens() -> Iterator[int]:
        while True:
            for prompt in load_self_generated_prompts():
                yield from session.encode(prompt.turns[0] + "\n")

    return [token for token, _ in zip(tokens(), range(num_tokens), strict=False)]
