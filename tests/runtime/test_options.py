"""Checks of the options of a reply."""

import pytest

from medusa_trt.errors import PromptError
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions


def test_temperature_zero_is_greedy() -> None:
    options = GenerationOptions(acceptance="typical")
    assert options.rule == "greedy"
    assert GenerationOptions(sampling=SamplingOptions(temperature=0.5)).rule == "sample"


@pytest.mark.parametrize("temperature", [9e-6, 1e-30, 1e-38, 1e-45, 5e-324])
def test_a_temperature_that_float32_cannot_divide_by_is_zero(temperature: float) -> None:
    options = GenerationOptions(sampling=SamplingOptions(temperature=temperature, seed=1))
    assert options.sampling == SamplingOptions(seed=1) and options.rule == "greedy"
    assert SamplingOptions(temperature=1e-5).temperature == 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posterior_threshold": 1.5}, "posterior_threshold is 1.5"),
        ({"posterior_alpha": float("nan")}, "posterior_alpha is nan"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"stop": ("",)}, "stop has '': it would end every reply"),
        ({"stop": ("\ud800",)}, "stop has .*no valid Unicode"),
        (
            {"acceptance": "greedy", "sampling": SamplingOptions(temperature=1)},
            "acceptance greedy at temperature 1",
        ),
        (
            {"acceptance": "typical", "sampling": SamplingOptions(temperature=1), "logprobs": 1},
            "acceptance typical takes no",
        ),
    ],
)
def test_contradictory_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        GenerationOptions(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e308}, "temperature is 1e.308: it must be between 0 and 100000"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2.0}, "min_p is 2"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_sampling_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        SamplingOptions(**change)  # type: ignore[arg-type]


def test_an_ngram_out_of_range_is_refused() -> None:
    for ngram in (-1, 17):
        with pytest.raises(PromptError, match=f"lookup_ngram is {ngram}"):
            GenerationOptions(lookup_ngram=ngram)
