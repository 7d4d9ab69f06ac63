"""A benchmark's report as data, and its JSON file."""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.calibration.bench.summary import Summary
from medusa_trt.calibration.noise import Noise
from medusa_trt.calibration.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSetup:
    """What was measured, as the report shows it.

    `threads` is None for the engine's choice, `tree` if trees were grown at each step.
    """

    bundle: str
    model: str
    target: str
    precision: str
    num_heads: int
    tree: str | None
    prompts: str
    num_prompts: int
    rounds: int
    max_new_tokens: int
    max_length: int
    threads: int | None
    temperature: float
    seed: int
    posterior_threshold: float
    posterior_alpha: float

    @property
    def tree_text(self) -> str:
        """Describes the draft tree."""
        return "trees grown at each step" if self.tree is None else f"tree {self.tree}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport(Origin):
    """A finished benchmark.

    Attributes:
        num_prompts_done: fewer than `setup.num_prompts` after an interruption in the first round.
        peak_memory_bytes: peak memory of the whole process.
        setup: what was measured.
        noise: what disturbed it; its spread is that of plain steps, over prompts.
        summary: the figures.
    """

    num_prompts_done: int
    peak_memory_bytes: int
    setup: BenchSetup
    noise: Noise
    summary: Summary

    def to_json(self, rows: Sequence[ReplyRow]) -> bytes:
        """Encodes the report with its measured replies, one a line."""
        head = msgspec.json.format(msgspec.json.encode(self), indent=2)
        lines = b",\n".join(b"    " + msgspec.json.encode(row) for row in rows)
        return head.removesuffix(b"\n}") + b',\n  "rows": [\n' + lines + b"\n  ]\n}\n"


def read_peak_memory_bytes() -> int:
    """Peak memory of this process until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB.
