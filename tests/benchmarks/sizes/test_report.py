"""The report of real sizes: what it makes of the measurements, as text and picture."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from sizes.report import (
    HEADS_ROWS,
    PASTS,
    PREFILL_ROWS,
    ROWS,
    Measurement,
    SizesReport,
    print_report,
    save_plot,
)

from medusa_trt.runtime.engines.machine import Machine

SHAPE, CONTENDERS = "small", ("medusa-trt int4", "llama.cpp q4_0")


def cost(num_layers: int, rows: int, past: int) -> float:
    return 3 + num_layers * (1 + rows / 8 + past / 1024)


def make_report(layers: tuple[int, ...]) -> SizesReport:
    """A report in which each layer costs the same; one time of three is far off."""
    steps = [(rows, past, False) for past in PASTS for rows in ROWS] + [(PREFILL_ROWS, 0, True)]
    measurements = [
        Measurement(
            shape=SHAPE,
            contender=contender,
            num_layers=count,
            rows=rows,
            past=past,
            is_prefill=is_prefill,
            times_ms=[cost(count, rows, past), 999, 0],
            memory_bytes=1000 + 100 * count,
        )
        for contender in CONTENDERS
        for count in layers
        for rows, past, is_prefill in [*steps, (HEADS_ROWS, PASTS[0], False)]
        if rows != HEADS_ROWS or count == 1
    ]
    return SizesReport(
        commands=["real_sizes.py small"],
        machine=Machine.detect(),
        threads=2,
        num_layers={SHAPE: 16},
        versions={},
        measurements=measurements,
    )


def test_figures_are_medians_extended_to_all_layers() -> None:
    report = make_report((1, 3))
    assert report.list_contenders(SHAPE) == list(CONTENDERS)
    for past in PASTS:
        for rows in ROWS:
            estimate = report.estimate_ms(SHAPE, CONTENDERS[0], rows, past)
            assert estimate == pytest.approx(cost(16, rows, past))
            assert report.measured_ms(SHAPE, CONTENDERS[0], rows, past) is None
    prefill_ms = report.estimate_ms(SHAPE, CONTENDERS[1], PREFILL_ROWS, 0, is_prefill=True)
    assert prefill_ms == pytest.approx(cost(16, PREFILL_ROWS, 0))
    assert report.estimate_memory_bytes(SHAPE, CONTENDERS[0]) == pytest.approx(2600)
    assert report.estimate_ms(SHAPE, CONTENDERS[0], HEADS_ROWS, PASTS[0]) == cost(1, 0, PASTS[0])


def test_all_layers_check_the_rule_and_do_not_enter_it() -> None:
    report = make_report((1, 3, 16))
    assert report.measured_ms(SHAPE, CONTENDERS[0], 8, 256) == pytest.approx(cost(16, 8, 256))
    output = io.StringIO()
    print_report(report, Console(file=output, width=200))
    assert "extended over measured with all layers: 1.00 to 1.00, median 1.00" in output.getvalue()


def test_the_report_is_read_again_printed_and_drawn(tmp_path: Path) -> None:
    report = make_report((1, 3))
    assert msgspec.json.decode(msgspec.json.encode(report), type=SizesReport) == report
    output = io.StringIO()
    print_report(report, Console(file=output, width=200))
    text = output.getvalue()
    assert "small, 16 layers, 2 threads" in text and "q4_0" in text
    assert text.count("times plain decoding") == len(PASTS), "only of this project"
    save_plot(report, tmp_path / "a.svg")
    assert SHAPE in (tmp_path / "a.svg").read_text()
