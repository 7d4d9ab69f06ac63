"""Step times that a calibration measured are the beginning of a session's curve."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from support.measurements.latency_records import latency

from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.options import LatencyOptions
from medusa_trt.calibration.origin import Origin
from medusa_trt.calibration.report.results import FOLDER, JSON_FILE, Calibration, save_calibration
from medusa_trt.errors import MedusaWarning
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.decoding.calibrated_times import CALIBRATION_FILE, read_step_times
from medusa_trt.runtime.engines.machine import Machine
from medusa_trt.runtime.session import MedusaSession

HEADS_MS = 0.5


def save_times(path: Path, machine: Machine, *, digest: str | None = None) -> None:
    """Saves step times of one thread: 5 ms, 1 ms for each node, 0.001 ms a node and token."""
    bundle = Bundle.open(path)
    records = [
        msgspec.structs.replace(
            latency(context, nodes, 5 + nodes + 0.001 * nodes * context + HEADS_MS),
            threads=1,
            heads_ms=HEADS_MS,
        )
        for context in (16, 256)
        for nodes in (1, 2, 4, 8)
    ]
    origin = Origin.from_command(machine, duration_s=1, is_complete=True)
    section = LatencySection.from_records(records, 1, LatencyOptions(), origin)
    folder = path / FOLDER
    save_calibration(
        folder,
        Calibration(
            model="", target="", precision="", bundle=digest or bundle.digest, latency=(section,)
        ),
    )
    assert path / CALIBRATION_FILE == folder / JSON_FILE


def test_measured_times_are_the_first_curve(bundle: Path) -> None:
    save_times(bundle, Machine.detect())
    times = read_step_times(Bundle.open(bundle), 1)
    assert times.rows[: times.num_points].tolist() == [1, 2, 4, 8, 16]
    assert times.past_ms == pytest.approx(0.001)
    mean_context = (16 + 256) / 2
    for rows in (1, 2, 4, 8):
        assert times.ms_of(rows) == pytest.approx(5 + rows + 0.001 * rows * mean_context)
    with MedusaSession(bundle, num_threads=1) as session:
        assert session.decoder.drafter.times.largest == 8


@pytest.mark.parametrize("other", ["processor", "kernels", "threads", "bundle"])
def test_times_of_anything_else_are_left(bundle: Path, other: str) -> None:
    machine = Machine.detect()
    if other == "processor":
        machine = dataclasses.replace(machine, cpu="another")
    if other == "kernels":
        machine = dataclasses.replace(machine, kernels="another")
    save_times(bundle, machine, digest="another" if other == "bundle" else None)
    assert read_step_times(Bundle.open(bundle), 3 if other == "threads" else 1).num_points == 0


def test_damaged_results_are_named(bundle: Path) -> None:
    save_times(bundle, Machine.detect())
    (bundle / CALIBRATION_FILE).write_text("{")
    with pytest.warns(MedusaWarning, match=r"calibration\.json .*delete it"):
        assert read_step_times(Bundle.open(bundle), 1).num_points == 0
