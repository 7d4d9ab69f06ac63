"""The machine that measurements are made on."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from medusa_trt.runtime.engines.cores import count_usable_cores
from medusa_trt.runtime.engines.operators import find_library, read_kernels_name

_PACKAGES = (
    "medusa-trt",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What measurements were made on.

    Attributes:
        cpu: name of the processor.
        num_cores: its logical processors.
        num_usable_cores: cores that this process may use.
        memory_bytes: size of its memory.
        system: the operating system.
        versions: versions of Python and of what times depend on.
        kernels: instruction set of the operators; None if they were not built.
    """

    cpu: str
    num_cores: int
    num_usable_cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]
    kernels: str | None = None

    @classmethod
    def detect(cls) -> "Machine":
        """Describes the machine that this process runs on."""
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        num_cores = os.cpu_count() or 1
        return cls(
            cpu=_read_cpu_name(),
            num_cores=num_cores,
            num_usable_cores=count_usable_cores(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=platform.platform(),
            versions=versions,
            kernels=None if find_library() is None else read_kernels_name(),
        )

    @property
    def fingerprint(self) -> str:
        """What step times depend on beside the bundle: processor, kernels, versions."""
        engines = (f"{name} {self.versions[name]}" for name in sorted(self.versions))
        prefixes = ("onnxruntime", "tensorrt", "medusa")
        relevant = [text for text in engines if text.startswith(prefixes)]
        cores = f"{self.num_usable_cores} cores"
        return ", ".join([self.cpu, cores, f"kernels {self.kernels}", *relevant])


def _read_cpu_name() -> str:
    """Name of the processor from the kernel, since Python only knows its family."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
