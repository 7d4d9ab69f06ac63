"""Requests that run at the same time: all are measured, and their figures are right."""

from support.table_session import session_on_table, with_eos

from medusa_trt.calibration.bench.load import (
    count_requests,
    list_loads,
    measure_loads,
)
from medusa_trt.calibration.bench.load_table import make_table, summarize_loads
from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.runtime.bundle import Bundle

PROMPTS = [BenchPrompt(str(number), "any", (f"question {number}",)) for number in range(3)]


def test_every_request_is_measured_in_both_modes(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), batch_size=3, max_length=400)
    options = BenchOptions(concurrency=(1, 3), arrivals=(50.0,), max_new_tokens=6, rounds=2)
    assert [load.text for load in list_loads(options)] == [
        "1 at a time",
        "3 at a time",
        "50 a second",
    ]
    advanced: list[int] = []
    runs = measure_loads(session, PROMPTS, options, lambda: advanced.append(1))
    assert len(advanced) == count_requests(PROMPTS, options) == 2 * 2 * (3 + 6 + 6)
    assert len(runs) == 12
    for run in runs:
        assert [len(row.token_ids) for row in run.rows] == [6] * len(run.rows)
        assert all(row.first_token_s > 0 and len(row.gaps_s) == 5 for row in run.rows)
    figures = summarize_loads(runs)
    assert [row.mode for row in figures] == ["plain", "Medusa"] * 3
    assert all(row.num_different == 0 for row in figures)
    assert figures[0].mean_nodes == 1.0 and figures[1].mean_nodes > 1.0
    assert make_table(figures).row_count == 6
