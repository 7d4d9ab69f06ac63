"""Merged measurements against the pages that they were merged from."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from medusa_trt.serving.replicas.measurements import merge_measurements

Sample = tuple[str, tuple[tuple[str, str], ...], float]


def make_page(number: int) -> str:
    registry = CollectorRegistry()
    Counter("requests", "Requests.", ["status"], registry=registry).labels("200").inc(number)
    Gauge("running", "Running replies.", registry=registry).set(number)
    Histogram("wait_s", "Waiting.", buckets=(1, 5), registry=registry).observe(number)
    if number > 1:
        Gauge("extra", "What one alone has.", registry=registry).set(7)
    return generate_latest(registry).decode()


def read_samples(page: str, **labels: str) -> list[Sample]:
    """All samples of a page, with these labels in addition."""
    return [
        (sample.name, tuple(sorted((sample.labels | labels).items())), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]


def test_each_sample_is_kept_and_names_its_replica() -> None:
    pages = {"one": make_page(1), "two": make_page(4)}
    merged = merge_measurements(list(pages.items())).decode()
    expected = [
        sample for name, page in pages.items() for sample in read_samples(page, replica=name)
    ]
    assert sorted(read_samples(merged)) == sorted(expected)
    for kind in ("# HELP", "# TYPE"):
        heads = [line.split()[2] for line in merged.splitlines() if line.startswith(kind)]
        assert len(heads) == len(set(heads))
        assert {"requests_total", "running", "wait_s", "extra"} <= set(heads)


def test_without_replicas_the_page_is_empty() -> None:
    assert merge_measurements([]) == b""
