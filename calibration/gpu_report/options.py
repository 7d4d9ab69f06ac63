"""Options of the report. This module imports nothing heavy: the command line reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from medusa_trt.errors import CalibrationError, check_range
from medusa_trt.types_of_options import check_types

StageName = Literal["machine", "bundle", "build", "graphs", "steps", "bench", "latency"]
"""All stages; the other ones than `OwnStageName` are verbs of their own."""

OwnStageName = Literal["graphs", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReportOptions:
    """What the report measures, and where it is written.

    Attributes:
        output: folder of the report, which is made; an archive of it lies beside it (default:
            gpu-report-BUNDLE in this folder).
        stage: run this stage alone, and write its files to the folder of --output, which may exist
            (default: all stages, and the report).
        gpu: the GPU whose bandwidth counts, as `inspect --gpu` takes it (default: by its driver's
            name, where that is known).
        rebuild: build the engines again where the bundle has some.
        num_prompts: prompts of the benchmark, taken evenly from MT-bench's categories.
        max_new_tokens: most tokens of each reply.
        sizes: numbers of nodes to time.
        contexts: numbers of tokens in the KV cache to time them at.
        rounds: samples of each size at each context.
        stage_minutes: end a stage that takes longer.
    """

    output: Annotated[Path | None, "--output FOLDER"] = None
    stage: OwnStageName | None = None
    gpu: Annotated[str | None, "--gpu NAME"] = None
    rebuild: bool = False
    num_prompts: int = 8
    max_new_tokens: int = 128
    sizes: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    contexts: tuple[int, ...] = (16, 256, 1024)
    rounds: int = 5
    stage_minutes: float = 60.0

    def __post_init__(self) -> None:
        check_types(self, CalibrationError)
        check_range(self, CalibrationError, "num_prompts", 1, 80)
        check_range(self, CalibrationError, "max_new_tokens", 2)
        check_range(self, CalibrationError, "rounds", 1)
        check_range(self, CalibrationError, "stage_minutes", 0.1)
        for name in ("sizes", "contexts"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise CalibrationError(f"{name} are {list(values)}: give numbers of at least 1")
