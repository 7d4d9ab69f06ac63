"""Options of a wrong type are refused by name, in every dataclass of options."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.options import LatencyOptions, ReplySettings
from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.export.options import ExportOptions
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.training.options import DataOptions, TrainOptions
from medusa_trt.types_of_options import check_types

WRONG: list[tuple[type, dict[str, object], str]] = [
    (GenerationOptions, {"stop": "98"}, "stop is '98'"),
    (GenerationOptions, {"stop": (1, 2)}, "stop is (1, 2)"),
    (GenerationOptions, {"stop_ids": ("a",)}, "stop_ids is"),
    (GenerationOptions, {"stop_ids": (-1,)}, "stop_ids has -1"),
    (GenerationOptions, {"acceptance": "foo"}, "one of greedy, typical, sample or None"),
    (GenerationOptions, {"max_new_tokens": 2.5}, "a whole number or None"),
    (GenerationOptions, {"max_new_tokens": "5"}, "max_new_tokens is '5'"),
    (GenerationOptions, {"tree": "plain"}, "a MedusaTree or None"),
    (GenerationOptions, {"processors": 5}, "processors is 5"),
    (GenerationOptions, {"processors": (5,)}, "LogitsProcessor"),
    (GenerationOptions, {"logprobs": -1}, "logprobs is -1"),
    (GenerationOptions, {"logprobs": True}, "logprobs is True"),
    (GenerationOptions, {"echo": 1}, "true or false"),
    (GenerationOptions, {"sampling": 0.7}, "a SamplingOptions"),
    (SamplingOptions, {"top_k": 1.5}, "top_k is 1.5"),
    (SamplingOptions, {"temperature": "0.7"}, "temperature is '0.7': it must be a number"),
    (SamplingOptions, {"temperature": float("nan")}, "temperature is nan"),
    (SamplingOptions, {"seed": 1.5}, "seed is 1.5"),
    (BenchOptions, {"rounds": 1.5}, "rounds is 1.5"),
    (LatencyOptions, {"sizes": "18"}, "sizes is '18'"),
    (TrainOptions, {"seed": -1}, "seed is -1: it must be between 0 and 4294967295"),
    (DataOptions, {"seed": 2**32}, "seed is 4294967296"),
    (ReplySettings, {"prompts": "", "prompts_sha256": "", "seed": -1}, "seed is -1"),
    (TrainOptions, {"learning_rate": "1e-3"}, "learning_rate is '1e-3'"),
    (ExportOptions, {"model": 5}, "model is 5: it must be text"),
    (BuildOptions, {"max_batch_size": "2"}, "max_batch_size is '2'"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG)
def test_nonsense_is_refused(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(MedusaError) as info:
        kind(**values)
    assert message in str(info.value)
    assert "\n" not in str(info.value)


@dataclass(frozen=True, slots=True)
class Options:
    count: int = 1
    share: float = 0.5
    names: Annotated[tuple[str, ...], "--name TEXT"] = ()
    kind: Literal["a", "b"] | None = None

    def __post_init__(self) -> None:
        check_types(self, PromptError)


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    options = Options(np.int64(3), np.float32(1), ["x"], "b")  # type: ignore[arg-type]
    assert options.names == ("x",) and options.count == 3
    assert type(options.count) is int and type(options.share) is float  # Others overflow.
    assert [type(item) for item in GenerationOptions(stop_ids=(np.int64(3),)).stop_ids] == [int]  # type: ignore[arg-type]
    assert Options(share=1).share == 1
