"""Measures step times of a session: whole steps, as a user's reply has them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from medusa_trt.calibration.bench.report import Machine
from medusa_trt.calibration.calibrate_options import LatencyOptions
from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.prompts import self_generated_prompts
from medusa_trt.calibration.records import RecordLog
from medusa_trt.calibration.replies import generate_whole_reply
from medusa_trt.calibration.trees.growth import grow, independent
from medusa_trt.errors import CalibrationError
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import Generation, GenerationStats, MedusaSession
from medusa_trt.tree_configs import MedusaTree

_WARM_UP_TOKENS = 2

Point = tuple[int, int, int]
"""Round, context and number of nodes of a sample."""


def machine_fingerprint(machine: Machine) -> str:
    """What step times depend on beside the bundle; times of other machines are left alone."""
    engines = (f"{name} {machine.versions[name]}" for name in sorted(machine.versions))
    kept = [text for text in engines if text.startswith(("onnxruntime", "tensorrt", "medusa"))]
    return ", ".join([machine.cpu, f"{machine.num_usable_cores} cores", *kept])


def measurable_options(session: MedusaSession, options: LatencyOptions) -> LatencyOptions:
    """The options without what this bundle cannot do: too long contexts, too large trees.

    Where the longest context does not fit, the longest that does takes its place.

    Raises:
        CalibrationError: no context fits.
    """
    heads = session.bundle.manifest.heads
    num_paths, level = 1, 1
    for _ in range(heads.num_heads):
        level *= heads.top_k
        num_paths += level
    most = min(num_paths, session.engine.capacity - session.max_length)
    longest = session.max_length - options.num_tokens - 1
    if longest < 1:
        raise CalibrationError(
            f"the session holds {session.max_length} tokens, one sample needs "
            f"{options.num_tokens + 2}: raise --max-length"
        )
    return replace(
        options,
        sizes=tuple(size for size in options.sizes if size <= most),
        contexts=tuple(min(context, longest) for context in options.contexts),
    )


def points_to_measure(
    options: LatencyOptions, records: Iterable[LatencyRecord], machine: str, threads: int | None
) -> list[Point]:
    """The samples that are missing, round by round, sizes in random order.

    Work on the machine comes and goes: one round after the other, every size meets it alike.

    Args:
        options: what is wanted.
        records: what was measured before, here or elsewhere.
        machine: fingerprint of this one.
        threads: for one step.
    """
    kind = (machine, threads, options.batch_size)
    done = {
        (record.round, record.context, record.num_nodes)
        for record in records
        if (record.machine, record.threads, record.batch_size) == kind
    }
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
        self, session: MedusaSession, options: LatencyOptions, machine: str, threads: int | None
    ) -> None:
        """Prepares a tree of each size and a text to put before the steps."""
        self._session, self._options = session, options
        self._machine, self._threads = machine, threads
        heads = session.bundle.manifest.heads
        self._trees = _typical_trees(heads.num_heads, heads.top_k, options.sizes)
        self._text = _long_text(session, max(options.contexts))

    def measure(
        self, points: Sequence[Point], log: RecordLog[LatencyRecord], advance: Callable[[], None]
    ) -> None:
        """Takes the samples and appends them to the log.

        Raises:
            KeyboardInterrupt: on Ctrl-C; whole samples are kept.
        """
        for round_, context, num_nodes in points:
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
                )
            )
            advance()

    def estimate_s(self, points: Sequence[Point]) -> float:
        """Seconds that the samples will take, from the smallest and the largest of them.

        In between, time is taken to be linear in the number of nodes.
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
        """A few steps; a shorter run before them prepares the engine for this tree."""
        for num_tokens in (_WARM_UP_TOKENS, self._options.num_tokens):
            reply = self._reply(
                self._text[:context],
                GenerationOptions(
                    max_new_tokens=num_tokens,
                    ignore_eos=True,
                    tree=self._trees[num_nodes],
                    lookup_ngram=0,
                ),
            )
        return reply.stats

    def _reply(self, prompt_ids: list[int], options: GenerationOptions) -> Generation:
        """Equal sequences in every slot, so that they end together; the last one's statistics
        begin when all are prefilled."""
        if self._options.batch_size == 1:
            return generate_whole_reply(self._session, prompt_ids, options)
        return self._session.generate_batch([prompt_ids] * self._options.batch_size, options)[-1]


def _typical_trees(num_heads: int, top_k: int, sizes: Iterable[int]) -> dict[int, MedusaTree]:
    """Trees as good heads would have them: what a step costs hardly depends on the shape."""
    accuracies = 0.6 * np.outer(0.8 ** np.arange(num_heads), 0.5 ** np.arange(top_k))
    order = grow(independent(accuracies), max(sizes))
    return {
        size: MedusaTree.from_choices(order[: size - 1], name=f"typical-{size}") for size in sizes
    }


def _long_text(session: MedusaSession, num_tokens: int) -> list[int]:
    """That many tokens of ordinary text."""

    def tokens() -> Iterator[int]:
        while True:
            for prompt in self_generated_prompts():
                yield from session.encode(prompt.turns[0] + "\n")

    return [token for token, _ in zip(tokens(), range(num_tokens), strict=False)]
