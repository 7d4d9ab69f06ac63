"""Modes and options of a benchmark."""

import pytest

from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.errors import PromptError


def test_modes_bring_their_baselines() -> None:
    assert [mode.name for mode in BenchOptions().modes] == [
        "greedy plain",
        "greedy Medusa",
        "heads alone",
        "sample plain",
        "sample Medusa",
        "typical Medusa",
    ]
    typical = BenchOptions(compared=("typical",)).modes
    assert [mode.name for mode in typical] == ["sample plain", "typical Medusa"]


def test_bad_options() -> None:
    for names in ((), ("medusa",)):
        with pytest.raises(PromptError, match="greedy, heads, sample, typical"):
            BenchOptions(compared=names)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="rounds is 0"):
        BenchOptions(rounds=0)
    with pytest.raises(PromptError, match="max_new_tokens is 1"):
        BenchOptions(max_new_tokens=1)
    with pytest.raises(PromptError, match="measure greedy and heads only"):
        BenchOptions(temperature=0)
    assert BenchOptions(temperature=0, compared=("greedy",)).modes


@pytest.mark.parametrize("values", [{"concurrency": (0,)}, {"arrivals": (0.0,)}])
def test_loads_out_of_range_are_refused(values: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(PromptError, match="it must be"):
        BenchOptions(**values)  # type: ignore[arg-type]
