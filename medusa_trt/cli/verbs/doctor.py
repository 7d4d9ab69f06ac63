"""`medusa-trt doctor`: what this machine can run, and what to install for the rest."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from medusa_trt import __version__
from medusa_trt.cli.parser import Verb

_MISSING = "not installed"


class _Purpose(NamedTuple):
    """Something that a machine can do.

    Attributes:
        name: what can be done.
        extra: the extra of medusa-trt that brings the packages.
        modules: import names of the packages; the package's name where it has a hyphen.
        needs_gpu: whether an NVIDIA GPU is needed besides.
    """

    name: str
    extra: str
    modules: tuple[str, ...]
    needs_gpu: bool = False


_PURPOSES = (
    _Purpose("decode on the CPU", "ort-cpu", ("onnxruntime",)),
    _Purpose(
        "export models",
        "export",
        ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "gguf"),
    ),
    _Purpose("train heads, merge adapters", "train", ("peft",)),
    _Purpose("serve replies over HTTP", "serve", ("fastapi", "uvicorn", "prometheus_client")),
    _Purpose("constrain replies by a grammar", "grammar", ("llguidance",)),
    _Purpose(
        "decode on a GPU with ONNX Runtime", "ort-cuda", ("onnxruntime-gpu", "cuda"), needs_gpu=True
    ),
    _Purpose("build and run TensorRT engines", "tensorrt", ("tensorrt", "cuda"), needs_gpu=True),
    _Purpose("build TensorRT-RTX engines", "tensorrt-rtx", ("tensorrt_rtx",)),
    _Purpose("run TensorRT-RTX engines", "tensorrt-rtx", ("tensorrt_rtx", "cuda"), needs_gpu=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorArguments:
    """Show what this machine can run, and what to install for the rest."""


def diagnose(_: DoctorArguments) -> None:
    """Prints a line for each purpose: whether it works here, else what is missing."""
    from medusa_trt.runtime.engines.cores import count_usable_cores
    from medusa_trt.runtime.engines.device.memory import read_compute_capability

    print(f"Python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"medusa-trt {__version__}")
    num_cores = count_usable_cores()
    print(f"processors {os.cpu_count()}, {num_cores} usable core{'s' * (num_cores > 1)}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        print(f"memory     {memory_bytes / 2**30:.1f} GiB")
    print(f"disk       {shutil.disk_usage('.').free / 1e9:.0f} GB free here")
    driver = shutil.which("nvidia-smi")
    capability = read_compute_capability()
    print(f"NVIDIA GPU {_describe_gpu(driver, capability)}")
    print(f"operators  {_describe_operators()}")
    print()
    for purpose in _PURPOSES:
        if not all(_is_installed(name) for name in purpose.modules):
            state = f"no: pip install 'medusa-trt[{purpose.extra}]'"
        elif purpose.needs_gpu and capability is None:
            state = "no: CUDA finds no NVIDIA GPU here"
        else:
            state = "yes"
        print(f"{purpose.name:<33} {state}")


def _describe_gpu(driver: str | None, capability: str | None) -> str:
    """Describes the first GPU."""
    if capability is not None:
        return f"compute capability {capability}"
    if driver is None:
        return "no nvidia-smi: no driver found"
    return "not found by CUDA" if _is_installed("cuda") else "driver found, cuda-python is missing"


def _describe_operators() -> str:
    """Describes the operator library, which quantized bundles need on the CPU."""
    from medusa_trt.errors import MedusaError
    from medusa_trt.runtime.engines.operators import find_library, read_kernels_name

    try:
        if find_library() is None:
            return "not built: quantized bundles need them; install a C++ compiler and reinstall"
        return f"{read_kernels_name()} kernels"
    except MedusaError as error:
        return str(error)


def _is_installed(name: str) -> bool:
    if "-" in name:  # two packages with one import name: ONNX Runtime with and without CUDA
        return _read_installed_version(name) != _MISSING
    return importlib.util.find_spec(name) is not None


def _read_installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _MISSING


VERBS = {"doctor": Verb(DoctorArguments, diagnose)}
