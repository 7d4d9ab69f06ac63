"""A benchmark's report in the terminal."""

from dataclasses import replace

import pytest
from rich.console import Console
from support.measurements.bench_rows import both, report_of

from medusa_trt.calibration.bench.tables import print_report


def test_the_report_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        replace(
            reply, category=f"category [{index % 8}]", decode_s=reply.decode_s * (1 + index / 10)
        )
        for index in range(16)
        for reply in both(str(index), 0.0402, 0.0301)
    ]
    console = Console(width=100)
    print_report(report_of(rows), console)
    out = capsys.readouterr().out
    assert "\u2026" not in out  # nothing was cut
    assert "step over" in out and "busy" not in out
    assert "category [7]" in out


def test_a_busy_machine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report_of(both("a", 2, 1), free_cores=0.2), Console(width=100))
    assert "The machine was busy during the measurement: other programs" in capsys.readouterr().out
