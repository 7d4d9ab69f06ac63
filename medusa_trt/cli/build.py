"""The command line's engines: `medusa-trt build BUNDLE`."""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

from medusa_trt.errors import MedusaError
from medusa_trt.export.tensorrt.options import BuildOptions

_INTEGERS = {
    "max_length": "longest sequence, in tokens (default: the bundle's)",
    "max_batch_size": "most sequences of one step",
    "max_tree_nodes": "most nodes of one step",
    "prefill_chunk": "most tokens of one prefill step (default: the bundle's)",
    "workspace_mib": "limit on scratch memory, in MiB (default: TensorRT's, all of the GPU's)",
    "optimization_level": "0 is the fastest build, 5 the fastest engine (default: TensorRT's)",
}
_SWITCHES = {
    "merge_tree": "make the tree a constant of the verify engine; prefill and other trees get "
    "an engine of their own",
    "version_compatible": "let later versions load the engines",
    "hardware_compatible": "let GPUs from compute capability 8.0 on load them",
    "refittable": "let the weights be replaced later",
    "strip_weights": "leave the weights out; loading takes them from the bundle",
    "weight_streaming": "allow weights to stay in host memory",
    "overwrite": "replace engines that are there",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `build`."""
    defaults = {field.name: field.default for field in fields(BuildOptions)}
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what medusa-export wrote")
    parser.add_argument(
        "--target", help="tensorrt, tensorrt-rtx or tensorrt-jetson (default: the bundle's)"
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        dest="compute_capabilities",
        help="GPU to build for (tensorrt-rtx only); may be repeated (default: this machine's)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write the engines (default: a folder in the bundle)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings to reuse and add to (default: one beside the engines' folder)",
    )
    for name, help_ in _INTEGERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar="N", help=help_, default=defaults[name]
        )
    for name, help_ in _SWITCHES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=help_)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> None:
    """Builds the engines.

    Raises:
        MedusaError: whatever the user can cause.
    """
    start = time.perf_counter()

    def progress(stage: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {stage}", file=sys.stderr, flush=True)

    progress("opening the bundle")
    try:
        from medusa_trt.export.tensorrt.build import build_engines
    except ImportError as error:
        raise MedusaError(
            f"building needs {error.name}: pip install 'medusa-trt[tensorrt]' or "
            "'medusa-trt[tensorrt-rtx]'"
        ) from error
    from medusa_trt.runtime.bundle import Bundle

    values = vars(arguments)
    names = {field.name for field in fields(BuildOptions)}
    asked = {name: value for name, value in values.items() if name in names}
    asked["compute_capabilities"] = tuple(asked["compute_capabilities"])
    folder = build_engines(Bundle.open(arguments.bundle), BuildOptions(**asked), progress)
    size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    progress(f"wrote {folder} ({size_bytes / 1e6:.0f} MB)")
