"""The report's section on step times."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medusa_trt.calibration.intervals import Interval, resample_medians
from medusa_trt.calibration.latency.curve import LatencyRecord
from medusa_trt.calibration.noise import Noise
from medusa_trt.calibration.options import LatencyOptions
from medusa_trt.calibration.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPoint:
    """Medians over the samples of one context and number of nodes; see `LatencyRecord`."""

    context: int
    num_nodes: int
    num_samples: int
    step_ms: Interval
    engine_ms: float
    host_ms: float
    heads_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySection:
    """Step times for one number of threads and for the batch size of `options`.

    Attributes:
        origin: see `Origin`.
        options: which steps were timed.
        threads: None for the engine's choice.
        points: medians of the samples.
        noise: what disturbed the samples; None if it is not known.
    """

    origin: Origin
    options: LatencyOptions
    threads: int | None
    points: list[LatencyPoint]
    noise: Noise | None = None

    @classmethod
    def from_records(
        cls,
        records: Iterable[LatencyRecord],
        threads: int | None,
        options: LatencyOptions,
        origin: Origin,
    ) -> "LatencySection":
        """Summarizes records of one machine, number of threads and batch size."""
        by_point: dict[tuple[int, int], list[LatencyRecord]] = {}
        for record in records:
            by_point.setdefault((record.context, record.num_nodes), []).append(record)
        groups = by_point.values()
        free_cores = [r.free_cores for group in groups for r in group if r.free_cores is not None]
        return cls(
            origin=origin,
            options=options,
            threads=threads,
            points=[_summarize(samples) for _, samples in sorted(by_point.items())],
            noise=Noise.from_samples(
                float(np.mean(free_cores)) if free_cores else None,
                threads,
                [[record.step_ms for record in group] for group in groups],
            ),
        )

    @property
    def kind(self) -> tuple[int, int | None]:
        """Batch size and number of threads: the report has one section of each kind."""
        return self.options.batch_size, self.threads

    @property
    def warning(self) -> str | None:
        """What to know and do if the machine was busy, else None."""
        busy = self.noise.warning if self.noise is not None else None
        again = "When it is quiet, measure again with medusa-trt calibrate latency --again."
        return f"{busy} {again}" if busy else None


def _summarize(samples: list[LatencyRecord]) -> LatencyPoint:
    step_ms = [record.step_ms for record in samples]
    heads_ms = [record.heads_ms for record in samples if record.heads_ms is not None]
    return LatencyPoint(
        context=samples[0].context,
        num_nodes=samples[0].num_nodes,
        num_samples=len(samples),
        step_ms=Interval.from_bootstrap(float(np.median(step_ms)), resample_medians(step_ms)),
        engine_ms=float(np.median([record.engine_ms for record in samples])),
        host_ms=float(np.median([record.step_ms - record.engine_ms for record in samples])),
        heads_ms=float(np.median(heads_ms)) if heads_ms else None,
    )
