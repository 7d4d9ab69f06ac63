"""Measurements for Prometheus; names and labels of vLLM where the meaning is the same."""

from collections.abc import Collection, Iterator
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from medusa_trt.runtime.reply import FinishReason, GenerationStats
from medusa_trt.runtime.scheduler import RequestEvent
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.worker import Ticket

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)

_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "cache_full": "length",
    "cancelled": "abort",
    "error": "error",
}
"""Names that vLLM has for reasons by which a reply ends."""

_PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Paths whose answers are not counted, as in vLLM."""


def count_accepted(stats: GenerationStats) -> int:
    """Counts the tokens of a reply that were drafts.

    Every step adds its accepted drafts, then a token of the model itself. Where the reply was cut
    in its last step, only the drafts before the cut count.
    """
    left, accepted = stats.new_tokens - 1, 0
    for length in stats.accept_lengths:
        accepted += min(length - 1, left)
        left -= length
    return accepted


class Metrics:
    """The measurements of one server."""

    def __init__(self, session: MedusaSession, model_name: str) -> None:
        """Starts all counts at zero.

        Args:
            session: its scheduler and decoder are looked at whenever the measurements are read.
            model_name: the label that all measurements of replies have.
        """
        self._decoder = session.decoder
        self._registry = CollectorRegistry()
        # vLLM numbers the engines of a server, and its boards have a filter for them.
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry.register(_SessionCollector(session, self._labels))
        ProcessCollector(registry=self._registry)
        self._ends = Counter(
            "vllm:request_success",
            "Replies by the reason of their end.",
            [*self._labels, "finished_reason"],
            registry=self._registry,
        )
        for reason in _REASONS.values():
            self._ends.labels(**self._labels, finished_reason=reason)
        rejections = Counter(
            "vllm:admission_rejections",
            "Replies that were refused because too many waited.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._rejections = rejections.labels(model_name, "max_num_queued_reqs")
        self._answers = Counter(
            "http_requests",
            "Requests by path, method and kind of status.",
            ["handler", "method", "status"],
            registry=self._registry,
        )
        self._num_steps, self._step_end_s = 0, 0.0
        measure = self._measure
        self._inter_token = measure(
            "inter_token_latency_seconds", "Time between two steps of a reply.", _TOKEN_S
        )
        self._first_token = measure(
            "time_to_first_token_seconds", "Time until the first token.", _FIRST_TOKEN_S
        )
        self._per_token = measure(
            "request_time_per_output_token_seconds",
            "Mean time of a reply's tokens after the first.",
            _TOKEN_S,
        )
        self._request = measure("e2e_request_latency_seconds", "Time of a reply.", _REQUEST_S)
        self._queue = measure("request_queue_time_seconds", "Time before the prompt.", _REQUEST_S)
        self._prefill = measure("request_prefill_time_seconds", "Time of the prompt.", _REQUEST_S)
        self._decode = measure("request_decode_time_seconds", "Time after it.", _REQUEST_S)
        self._inference = measure("request_inference_time_seconds", "Both together.", _REQUEST_S)
        self._prompt_size = measure("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._reply_size = measure("request_generation_tokens", "Tokens of a reply.", _TOKENS)

    def render(self) -> bytes:
        """The measurements in Prometheus's text format."""
        return generate_latest(self._registry)

    def note_step(self) -> None:
        """Measures a step for each reply in it; the scheduler's thread calls this."""
        now, num_steps = perf_counter(), self._decoder.num_sequence_steps
        for _ in range(num_steps - self._num_steps):
            self._inter_token.observe(now - self._step_end_s)
        self._num_steps, self._step_end_s = num_steps, now

    def note_rejection(self, num_replies: int) -> None:
        """Counts replies for which there was no room."""
        self._rejections.inc(num_replies)

    def note_answer(self, described: dict[str, object], paths: Collection[str]) -> None:
        """Counts an answer to a request, of which the log says so much.

        Args:
            described: made by `RequestRecord.describe`.
            paths: the server's paths; other ones count as "none", because anybody can invent them.
        """
        path, status = described["path"], f"{str(described['status'])[0]}xx"
        if path not in _PROBES:
            handler = path if path in paths else "none"
            self._answers.labels(handler, described["method"], status).inc()

    def note_end(self, ticket: Ticket, result: RequestEvent) -> None:
        """Counts a reply that has ended."""
        generation = result.event.generation
        assert generation is not None
        stats, reason = generation.stats, generation.finish_reason
        self._ends.labels(**self._labels, finished_reason=_REASONS[reason]).inc()
        total_s = perf_counter() - ticket.submitted_s
        self._request.observe(total_s)
        if stats.new_tokens == 0:
            return
        first_token_s = max(0.0, total_s - stats.decode_s)
        self._first_token.observe(first_token_s)
        self._queue.observe(max(0.0, first_token_s - stats.prefill_s))
        self._prefill.observe(stats.prefill_s)
        self._decode.observe(stats.decode_s)
        self._inference.observe(stats.prefill_s + stats.decode_s)
        self._prompt_size.observe(stats.prompt_tokens)
        self._reply_size.observe(stats.new_tokens)
        if stats.new_tokens > 1:
            self._per_token.observe(stats.decode_s / (stats.new_tokens - 1))

    def _measure(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, list(self._labels), buckets=buckets, registry=self._registry
        )
        return histogram.labels(**self._labels)


class _SessionCollector(Collector):
    """Reads what the scheduler and the decoder count themselves."""

    def __init__(self, session: MedusaSession, labels: dict[str, str]) -> None:
        self._session, self._labels = session, labels

    def collect(self) -> Iterator[Metric]:
        """Yields the measurements of this moment."""
        session, scheduler, decoder = self._session, self._session.scheduler, self._session.decoder
        counts = scheduler.counts
        num_rows = session.engine.batch_size * session.max_length
        yield self._gauge("num_requests_running", "Replies that are made.", scheduler.num_running)
        yield self._gauge("num_requests_waiting", "Requests that wait.", scheduler.num_waiting)
        yield self._gauge(
            "kv_cache_usage_perc",
            "Share of the KV cache that running replies hold; 1 is all of it.",
            scheduler.num_cached_tokens / num_rows,
        )
        for name, text, number in (
            ("prompt_tokens", "Tokens of prompts.", counts.prompt_tokens),
            ("prompt_tokens_cached", "Those that were cached.", counts.cached_tokens),
            ("prefix_cache_queries", "Tokens looked for in the cache.", counts.prompt_tokens),
            ("prefix_cache_hits", "Those that were there.", counts.cached_tokens),
            ("generation_tokens", "Tokens of replies.", counts.new_tokens),
            (
                "spec_decode_num_drafts",
                "Steps that verified drafts, one for each reply.",
                decoder.num_drafting_steps,
            ),
            (
                "spec_decode_num_draft_tokens",
                "Drafted tokens that were verified.",
                decoder.num_rows - decoder.num_sequence_steps,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Tokens of replies that were drafts.",
                sum(counts.accepted_drafts),
            ),
        ):
            yield self._counter(name, text, {"": number})
        yield self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Those by their place after the root.",
            {str(place): number for place, number in enumerate(counts.accepted_drafts or [0])},
            "position",
        )

    def _gauge(self, name: str, text: str, number: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        gauge.add_metric(list(self._labels.values()), number)
        return gauge

    def _counter(
        self, name: str, text: str, numbers: dict[str, int], label: str = ""
    ) -> CounterMetricFamily:
        """Makes a counter; with a label, of a number for each of its values."""
        names, values = list(self._labels), list(self._labels.values())
        labels = [*names, label] if label else names
        counter = CounterMetricFamily(f"vllm:{name}", text, labels=labels)
        for value, number in numbers.items():
            counter.add_metric([*values, value] if label else values, number)
        return counter
