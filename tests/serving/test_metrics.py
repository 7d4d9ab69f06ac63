"""Measurements: names of vLLM, and counts that agree with the replies."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.live_server import LiveServer

from medusa_trt.runtime.reply import GenerationStats
from medusa_trt.serving.metrics import count_accepted


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
