"""The turns of real sizes, and the report that is added to."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real_sizes import check, measure_turn, open_report
from sizes.contenders import Format
from sizes.report import HEADS_ROWS, PASTS, PREFILL_ROWS, ROWS

from medusa_trt.errors import MedusaError


class Process:
    """Answers with the request."""

    def time_rows(self, rows: int, past: int, repeats: int, is_prefill: bool) -> dict[str, Any]:
        return {"times_ms": [float(rows)] * repeats, "peak_memory_bytes": past}


@pytest.mark.parametrize(
    ("form", "num_layers", "has_heads"),
    [
        (Format("medusa-trt", "int8", 8), 1, True),
        (Format("medusa-trt", "int8", 8), 4, False),
        (Format("llama.cpp", "q8_0", 8), 1, False),
    ],
)
def test_a_turn_times_all_steps(form: Format, num_layers: int, has_heads: bool) -> None:
    turn = measure_turn(Process(), "s", form, num_layers, 3)  # type: ignore[arg-type]
    steps = [(entry.rows, entry.past) for entry in turn if not entry.is_prefill]
    heads = [(HEADS_ROWS, PASTS[0])] if has_heads else []
    assert steps == [(rows, past) for past in PASTS for rows in ROWS] + heads
    assert [len(entry.times_ms) for entry in turn if not entry.is_prefill] == [3] * len(steps)
    assert [entry.rows for entry in turn if entry.is_prefill] == [PREFILL_ROWS]


def make_arguments(folder: Path, **changes: object) -> Namespace:
    values: dict[str, object] = {"shapes": ["vicuna-7b"], "threads": 1, "layers": 2, "rounds": 1}
    values |= {"folder": folder / "peers", "json": folder / "a.json", "plot": None}
    return Namespace(**values | changes)


def test_a_report_that_exists_is_added_to(tmp_path: Path) -> None:
    report = open_report(make_arguments(tmp_path))
    report.num_layers["other"] = 3
    (tmp_path / "a.json").write_bytes(msgspec.json.encode(report))
    again = open_report(make_arguments(tmp_path))
    assert again.num_layers == {"other": 3} and len(again.commands) == 2
    assert len(open_report(make_arguments(tmp_path, shapes=[])).commands) == 1, "only printed"
    with pytest.raises(MedusaError, match="1 threads: give another file"):
        open_report(make_arguments(tmp_path, threads=2))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(MedusaError, match="no report of this script"):
        open_report(make_arguments(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 1}, "--layers must be at least 2"),
        ({"rounds": 0}, "--rounds at least 1"),
        ({"layers": 33}, "--layers is 33: vicuna-7b has 32"),
        ({"shapes": ["vicuna-8b"]}, "no shape is known for 'vicuna-8b'"),
    ],
)
def test_wrong_arguments_are_named(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    check(make_arguments(tmp_path))
    with pytest.raises(MedusaError, match=message):
        check(make_arguments(tmp_path, **changes))
