"""The figures of requests that ran at the same time."""

import json

import pytest

from medusa_trt.calibration.bench.load import Load, LoadRow, LoadRun
from medusa_trt.calibration.bench.load_table import encode_loads, summarize_loads


def test_figures_are_those_of_the_rows() -> None:
    def run(mode: str, seconds: float, tokens: tuple[int, ...]) -> LoadRun:
        row = LoadRow(
            round=1,
            load=Load(concurrency=1),
            mode=mode,
            prompt=0,
            first_token_s=0.5,
            gaps_s=(0.1, 0.3),
            token_ids=tokens,
        )
        return LoadRun(rows=(row, row), duration_s=seconds, mean_nodes=1.0)

    runs = [run("plain", 4.0, (1, 2, 3)), run("Medusa", 2.0, (1, 2, 4))]
    plain, medusa = figures = summarize_loads(runs)
    assert plain.tokens_per_s == 1.5 and medusa.tokens_per_s == 3.0 and medusa.speedup == 2.0
    assert medusa.num_different == 2 and plain.num_different == 0
    assert plain.first_token_ms == (500.0, 500.0)
    assert plain.tokens_per_s_each == pytest.approx(5.0)
    encoded = json.loads(encode_loads(figures, runs))
    assert [row["speedup"] for row in encoded["figures"]] == [None, 2.0]
    assert len(encoded["runs"]) == 2
