"""The measurements of several replicas as one page."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merge_measurements(measured: Sequence[tuple[str, str]]) -> bytes:
    """Merges pages of measurements; each sample gets the label `replica`.

    Args:
        measured: the name of each replica, and its page in Prometheus's text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(measured))
    return generate_latest(registry)


class _Merged(Collector):
    """Collects the samples of all replicas under one head for each name."""

    def __init__(self, measured: Sequence[tuple[str, str]]) -> None:
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for replica, page in self._measured:
            for family in text_string_to_metric_families(page):
                metric = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = sample.labels | {"replica": replica}
                    metric.samples.append(sample._replace(labels=labels))
        yield from merged.values()
