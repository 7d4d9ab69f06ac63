"""What this machine can run: `medusa-trt doctor`."""

import argparse
import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

_MISSING = "not installed"

_EXTRAS = {
    "ort-cpu": (("onnxruntime",), "decode on the CPU"),
    "export": (
        ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "gguf"),
        "export models",
    ),
    "train": (("peft",), "train heads, merge adapters"),
    "grammar": (("llguidance",), "constrain replies by a grammar"),
    "ort-cuda": (("onnxruntime-gpu", "cuda"), "decode on a GPU with ONNX Runtime"),
    "tensorrt": (("tensorrt", "cuda"), "build and run TensorRT engines"),
    "tensorrt-rtx": (("tensorrt_rtx", "cuda"), "build and run TensorRT-RTX engines"),
}
"""Import names (or packages, with a hyphen) of what each extra brings, and what it is for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `doctor`."""
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each thing that can be done here, and how to get what is missing."""
    del arguments
    print(f"Python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"medusa-trt {_version('medusa-trt')}")
    print(f"processors {os.cpu_count()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        print(f"memory     {memory_bytes / 2**30:.1f} GiB")
    print(f"disk       {shutil.disk_usage('.').free / 1e9:.0f} GB free here")
    print(f"NVIDIA GPU {shutil.which('nvidia-smi') or 'no nvidia-smi: no driver found'}")
    print(f"operators  {_operators()}")
    print()
    for extra, (modules, purpose) in _EXTRAS.items():
        missing = [name for name in modules if not _is_installed(name)]
        state = f"no: pip install 'medusa-trt[{extra}]'" if missing else "yes"
        print(f"{purpose:<32} {state}")


def _operators() -> str:
    """Whether quantized graphs run, and on which kernels."""
    from medusa_trt.errors import MedusaError
    from medusa_trt.runtime.operators import kernels_name, library_path

    if library_path() is None:
        return "not built: quantized bundles need them; install a C++ compiler and reinstall"
    try:
        return f"{kernels_name()} kernels"
    except MedusaError as error:
        return str(error)


def _is_installed(name: str) -> bool:
    if "-" in name:  # two packages with one import name: ONNX Runtime with and without CUDA
        return _version(name) != _MISSING
    return importlib.util.find_spec(name) is not None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _MISSING
