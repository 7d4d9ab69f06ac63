"""Measurements for Prometheus; names of vLLM where the meaning is the same."""

from collections.abc import Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from medusa_trt.runtime.reply import GenerationStats
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

_REASONS = {"cache_full": "length", "cancelled": "abort"}
"""Names that vLLM has for reasons by which a reply ends."""


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
            model_name: the label that all measurements have.
        """
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model_name}
        self._registry.register(_SessionCollector(session, self._labels))
        self._prompt_tokens = self._count("prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = self._count("prompt_tokens_cached", "Those that were cached.")
        self._tokens = self._count("generation_tokens", "Tokens of replies.")
        self._accepted = self._count(
            "spec_decode_num_accepted_tokens", "Tokens of replies that were drafts."
        )
        self._ends = Counter(
            "vllm:request_success",
            "Replies by the reason of their end.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        measure = self._measure
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
        self._prompt_size = measure("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._reply_size = measure("request_generation_tokens", "Tokens of a reply.", _TOKENS)

    def render(self) -> bytes:
        """The measurements in Prometheus's text format."""
        return generate_latest(self._registry)

    def note_end(self, ticket: Ticket, result: RequestEvent) -> None:
        """Counts a reply that has ended."""
        generation = result.event.generation
        assert generation is not None
        stats, reason = generation.stats, generation.finish_reason
        self._ends.labels(**self._labels, finished_reason=_REASONS.get(reason, reason)).inc()
        total_s = perf_counter() - ticket.submitted_s
        self._request.observe(total_s)
        if stats.new_tokens == 0:
            return
        self._prompt_tokens.inc(stats.prompt_tokens)
        self._cached_tokens.inc(stats.cached_tokens)
        self._tokens.inc(stats.new_tokens)
        self._accepted.inc(count_accepted(stats))
        first_token_s = max(0.0, total_s - stats.decode_s)
        self._first_token.observe(first_token_s)
        self._queue.observe(max(0.0, first_token_s - stats.prefill_s))
        self._prefill.observe(stats.prefill_s)
        self._decode.observe(stats.decode_s)
        self._prompt_size.observe(stats.prompt_tokens)
        self._reply_size.observe(stats.new_tokens)
        if stats.new_tokens > 1:
            self._per_token.observe(stats.decode_s / (stats.new_tokens - 1))

    def _count(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, ["model_name"], registry=self._registry)
        return counter.labels(**self._labels)

    def _measure(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, ["model_name"], buckets=buckets, registry=self._registry
        )
        return histogram.labels(**self._labels)


class _SessionCollector(Collector):
    """Reads what the scheduler and the decoder count themselves."""

    def __init__(self, session: MedusaSession, labels: dict[str, str]) -> None:
        self._session, self._labels = session, labels

    def collect(self) -> Iterator[Metric]:
        scheduler, decoder = self._session.scheduler, self._session.decoder
        num_steps, num_rows = decoder.num_sequence_steps, decoder.num_rows
        names, values = list(self._labels), list(self._labels.values())
        gauges = (
            ("num_requests_running", "Replies that are made.", scheduler.num_running),
            ("num_requests_waiting", "Requests that wait.", scheduler.num_waiting),
        )
        for name, text, number in gauges:
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=names)
            gauge.add_metric(values, number)
            yield gauge
        counts = (
            ("num_drafts", "Steps that verified drafts, one for each reply.", num_steps),
            (
                "num_draft_tokens",
                "Drafted tokens that were verified.",
                max(0, num_rows - num_steps),
            ),
        )
        for name, text, number in counts:
            counter = CounterMetricFamily(f"vllm:spec_decode_{name}", text, labels=names)
            counter.add_metric(values, number)
            yield counter
