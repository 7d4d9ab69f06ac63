"""A benchmark's report as data: what ran, on what, what came out, and its JSON file."""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

from medusa_trt import __version__
from medusa_trt.calibration.bench.measurement import ReplyRow
from medusa_trt.calibration.bench.summary import Summary
from medusa_trt.errors import MedusaError

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a benchmark ran on. `num_usable_cores` is what this process may use of them."""

    cpu: str
    num_cores: int
    num_usable_cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]

    @classmethod
    def this(cls) -> "Machine":
        """The machine that this runs on."""
        versions = {"medusa-trt": __version__, "python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        num_cores = os.cpu_count() or 1
        return cls(
            cpu=_cpu_name(),
            num_cores=num_cores,
            num_usable_cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=platform.platform(),
            versions=versions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSetup:
    """What was measured, as the report tells it. `threads` is None for the engine's choice."""

    bundle: str
    model: str
    target: str
    precision: str
    num_heads: int
    tree: str
    num_nodes: int
    max_depth: int
    prompts: str
    num_prompts: int
    rounds: int
    max_new_tokens: int
    max_length: int
    threads: int | None
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Everything that is known of a finished benchmark.

    Attributes:
        command: as typed.
        date: when it began, in ISO format.
        duration_s: seconds of measuring.
        is_complete: false after an interruption.
        num_prompts_done: less than the setup's after an early one.
        peak_memory_bytes: of the whole process, so far.
        setup: what was measured.
        machine: and on what.
        summary: its figures.
    """

    command: str
    date: str
    duration_s: float
    is_complete: bool
    num_prompts_done: int
    peak_memory_bytes: int
    setup: BenchSetup
    machine: Machine
    summary: Summary

    def to_json(self, rows: Sequence[ReplyRow]) -> bytes:
        """The report with its measured replies, one a line."""
        head = msgspec.json.format(msgspec.json.encode(self), indent=2)
        lines = b",\n".join(b"    " + msgspec.json.encode(row) for row in rows)
        return head.removesuffix(b"\n}") + b',\n  "rows": [\n' + lines + b"\n  ]\n}\n"


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it takes the path's place once it is complete.

    Raises:
        MedusaError: it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise MedusaError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _cpu_name() -> str:
    """The processor as the kernel names it; Python only knows its family."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
