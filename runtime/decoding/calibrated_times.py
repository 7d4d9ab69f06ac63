"""Step times that `medusa-trt calibrate latency` measured on this machine, as a first curve."""

import warnings
from collections.abc import Sequence

import msgspec

from medusa_trt.errors import MedusaWarning
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.step_times import StepTimes, TimedPoint
from medusa_trt.runtime.engines.cores import count_usable_cores
from medusa_trt.runtime.engines.machine import Machine

CALIBRATION_FILE = "calibration/calibration.json"
"""The results of all calibrations, in the bundle's folder; see `calibration/report/results.py`."""


class _Interval(msgspec.Struct):
    median: float


class _Point(msgspec.Struct):
    context: int
    num_nodes: int
    step_ms: _Interval
    heads_ms: float | None = None


class _Options(msgspec.Struct):
    batch_size: int


class _Origin(msgspec.Struct):
    machine: Machine
    is_complete: bool


class _Section(msgspec.Struct):
    origin: _Origin
    options: _Options
    threads: int | None
    points: list[_Point]


class _Calibration(msgspec.Struct):
    """The part of the results that is read here; msgspec leaves the other fields out."""

    bundle: str = ""
    latency: list[_Section] = []


def read_step_times(bundle: Bundle, num_threads: int | None) -> StepTimes:
    """Reads the step times of this bundle, machine and number of threads; without any, no curve.

    Args:
        bundle: an opened bundle.
        num_threads: threads of a step; None for the engine's choice.
    """
    path = bundle.path / CALIBRATION_FILE
    if not path.is_file():
        return StepTimes()
    try:
        calibration = msgspec.json.decode(path.read_bytes(), type=_Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        warnings.warn(
            f"cannot read {path} ({error}), so step times are learned anew: delete it, or run "
            "medusa-trt calibrate latency again",
            MedusaWarning,
            stacklevel=4,
        )
        return StepTimes()
    if calibration.bundle != bundle.digest or not calibration.latency:
        return StepTimes()
    num_cores, fingerprint = count_usable_cores(), Machine.detect().fingerprint
    by_rows: dict[int, list[TimedPoint]] = {}
    for section in sorted(calibration.latency, key=lambda section: section.options.batch_size):
        if (
            section.origin.is_complete
            and section.origin.machine.fingerprint == fingerprint
            and (section.threads or num_cores) == (num_threads or num_cores)
        ):
            for rows, points in _points_by_rows(section).items():
                by_rows.setdefault(rows, points)
    return _fit([points for _, points in sorted(by_rows.items())])


def _points_by_rows(section: _Section) -> dict[int, list[TimedPoint]]:
    """Times of whole steps without the heads, at each context."""
    by_rows: dict[int, list[TimedPoint]] = {}
    for point in section.points:
        if point.heads_ms is not None:
            rows = section.options.batch_size * point.num_nodes
            ms = point.step_ms.median - point.heads_ms
            by_rows.setdefault(rows, []).append(TimedPoint(rows, ms, point.context))
    return by_rows


def _fit(sizes: Sequence[Sequence[TimedPoint]]) -> StepTimes:
    """Makes a curve of each size's mean over the contexts, and of the slope over them."""
    means, products, squares = [], 0.0, 0.0
    for points in sizes:
        rows, count = points[0].rows, len(points)
        ms = sum(point.ms for point in points) / count
        past = sum(point.past for point in points) / count
        means.append(TimedPoint(rows, ms, past))
        for point in points:
            work = rows * (point.past - past)
            products += work * (point.ms - ms)
            squares += work * work
    return StepTimes(means, max(0.0, products / squares) if squares else 0.0)
