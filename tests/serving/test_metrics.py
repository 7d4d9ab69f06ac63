"""Measurements: names of vLLM, and counts that agree with the replies."""

import threading
from itertools import count
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers.live_server import LiveServer, running_server, wait_for
from support.table_session import session_on_table, with_eos

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.reply import GenerationStats
from medusa_trt.serving.metrics import count_accepted

VLLM = {
    *(f"vllm:{name}" for name in ("num_requests_running", "num_requests_waiting")),
    *(f"vllm:{name}_total" for name in ("prompt_tokens", "prompt_tokens_cached")),
    *(f"vllm:{name}_total" for name in ("prefix_cache_queries", "prefix_cache_hits")),
    *(f"vllm:{name}_total" for name in ("generation_tokens", "request_success")),
    *(f"vllm:{name}_total" for name in ("admission_rejections", "spec_decode_num_drafts")),
    "vllm:kv_cache_usage_perc",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    *(
        f"vllm:{name}_seconds_bucket"
        for name in (
            "time_to_first_token",
            "inter_token_latency",
            "request_time_per_output_token",
            "e2e_request_latency",
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
            "request_inference_time",
        )
    ),
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "http_requests_total",
    "process_resident_memory_bytes",
}
"""Names of vLLM 0.32 whose meaning is the same here."""


def read_metrics(live: LiveServer) -> dict[str, float]:
    """The sum of each sample over its labels."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(live.client.get("/metrics").text):
        for sample in family.samples:
            samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return samples


def test_the_counts_are_those_of_the_replies(live: LiveServer) -> None:
    before = read_metrics(live)
    usages = [
        live.complete(prompt=text, max_tokens=20, temperature=0).json()["usage"]
        for text in ("one", "two and three", "two and three")
    ]
    after = read_metrics(live)
    grown = {name.removeprefix("vllm:"): after[name] - before.get(name, 0.0) for name in after}
    assert grown["prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    assert grown["generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    accepted = sum(
        usage["completion_tokens_details"]["accepted_prediction_tokens"] for usage in usages
    )
    assert grown["spec_decode_num_accepted_tokens_total"] == accepted
    assert grown["spec_decode_num_draft_tokens_total"] >= accepted
    assert grown["spec_decode_num_drafts_total"] > 0
    assert grown["request_success_total"] == 3
    for name in ("time_to_first_token", "request_time_per_output_token", "e2e_request_latency"):
        assert grown[f"{name}_seconds_count"] == 3
        assert grown[f"{name}_seconds_sum"] > 0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert grown["spec_decode_num_accepted_tokens_per_pos_total"] == accepted
    assert grown["prefix_cache_queries_total"] == grown["prompt_tokens_total"]
    assert grown["inter_token_latency_seconds_count"] >= grown["spec_decode_num_drafts_total"]


def test_the_names_and_labels_are_those_of_vllm(live: LiveServer) -> None:
    live.complete(max_tokens=20, ignore_eos=True, prompt="abcabcabc")
    samples = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(live.client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples.keys() >= VLLM, VLLM - samples.keys()
    for name, labels in samples.items():
        if name.startswith("vllm:"):
            assert labels["model_name"] == live.service.model_name
            assert labels.get("engine", "0") == "0"


def test_counts_grow_while_a_reply_is_made(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), takes_new_trees=True)
    verify, calls, stands, goes_on = engine.verify, count(), threading.Event(), threading.Event()

    def verify_until_stopped(*args: Any, **options: Any) -> VerifyOutputs:
        if next(calls) == 5:
            stands.set()
            assert goes_on.wait(60)
        return verify(*args, **options)

    engine.verify = verify_until_stopped  # type: ignore[method-assign]
    with session, running_server(session, max_sequences=1) as live:
        reply = threading.Thread(target=live.complete, kwargs={"max_tokens": 100})
        reply.start()
        try:
            wait_for(stands.is_set)
            during = read_metrics(live)
        finally:
            goes_on.set()
            reply.join()
    assert during["vllm:num_requests_running"] == 1
    assert 0 < during["vllm:kv_cache_usage_perc"] < 1
    assert during["vllm:generation_tokens_total"] >= 5
    assert during["vllm:inter_token_latency_seconds_count"] == 4
    assert during["vllm:request_success_total"] == 0


def test_answers_are_counted_by_the_servers_own_paths(live: LiveServer) -> None:
    for path in ("/v1/models", "/nonsense", "/other", "/health"):
        live.client.get(path)
    counts = {
        (sample.labels["handler"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(live.client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "http_requests_total"
    }
    assert counts["/v1/models", "2xx"] >= 1 and counts["none", "4xx"] >= 2
    assert not {"/nonsense", "/health"} & {handler for handler, _ in counts}


@pytest.mark.parametrize(
    ("accept_lengths", "new_tokens", "accepted"),
    [((), 0, 0), ((), 1, 0), ((1, 1), 3, 0), ((3, 2), 6, 3), ((3, 4), 7, 5), ((3, 4), 5, 3)],
)
def test_accepted_tokens_are_drafts_that_are_part_of_the_reply(
    accept_lengths: tuple[int, ...], new_tokens: int, accepted: int
) -> None:
    stats = GenerationStats(
        prompt_tokens=1,
        cached_tokens=0,
        new_tokens=new_tokens,
        accept_lengths=accept_lengths,
        prefill_s=0,
        decode_s=0,
        engine_s=0,
    )
    assert count_accepted(stats) == accepted
