"""Options of an export that contradict each other, and what the command line offers."""

from pathlib import Path

import pytest

from medusa_trt.errors import ExportError
from medusa_trt.export.options import NO_HEADS, ExportOptions

GOOD: list[dict[str, object]] = [
    {},
    {"random_weights": True, "num_layers": 2},
    {"random_weights": True, "heads": NO_HEADS},
    {"quantization_plan": Path("plan.json")},
    {"draft_vocabulary": 1000, "draft_counts": Path("text.txt")},
]


@pytest.mark.parametrize("options", GOOD)
def test_options_that_fit_together_are_taken(options: dict[str, object]) -> None:
    taken = ExportOptions(model="x", **options)  # type: ignore[arg-type]
    assert {name: getattr(taken, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2}, "--layers cuts a model with --random-weights only"),
        (
            {"quantization_plan": Path("plan.json"), "precision": "int8"},
            "--precision and --quantization-plan exclude each other",
        ),
        ({"random_weights": True, "heads": "heads.pt"}, "makes its own heads: leave --heads out"),
        ({"draft_counts": Path("text.txt")}, "needs the number of tokens: give --draft-vocabulary"),
        ({"max_length": "long"}, "max_length is 'long'"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportOptions(model="x", **options)  # type: ignore[arg-type]
