"""The sections as tables for a terminal."""

from dataclasses import replace

from rich.console import Console
from rich.table import Table
from support.measurements.calibrations import HEADS, LATENCY, QUANTIZATION, THRESHOLD, TREE

from medusa_trt.calibration.report.tables import (
    tabulate_heads,
    tabulate_latency,
    tabulate_plans,
    tabulate_threshold,
    tabulate_tree,
    text_from_recommendation,
)


def show(table: Table) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_table_fits_100_columns() -> None:
    tables = {
        "heads": show(tabulate_heads(HEADS)),
        "latency": show(tabulate_latency(LATENCY)),
        "tree": show(tabulate_tree(TREE)),
        "threshold": show(tabulate_threshold(THRESHOLD)),
        "plans": show(tabulate_plans(QUANTIZATION)),
    }
    assert not any("\u2026" in text for text in tables.values())
    assert "ms after 256 tokens" in tables["latency"]
    assert "plain" in tables["tree"] and "searched" in tables["tree"]
    assert "sampler" in tables["threshold"]
    assert "83 int4, 38 int8" in tables["plans"]


def test_a_plan_without_a_prediction_has_a_dash_for_it() -> None:
    plans = tuple(replace(plan, predicted_kl=None) for plan in QUANTIZATION.plans)
    text = show(tabulate_plans(replace(QUANTIZATION, plans=plans)))
    assert "   -   0.1210" in text and "1.1 *" not in text


def test_a_recommendation_can_be_typed() -> None:
    text = text_from_recommendation(THRESHOLD.recommendations[0])
    assert "--acceptance typical --temperature 0.5 --posterior-threshold 0.09" in text
