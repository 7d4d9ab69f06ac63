"""Scripts that build engines with a Jetson's own TensorRT, and check them."""

import shlex
from math import prod

from medusa_trt.export.tensorrt.options import num_cache_rows
from medusa_trt.runtime.bundle import Bundle, GraphSpec

JETSON_TENSORRT = "10.3"
"""TensorRT of JetPack 6.1 and 6.2, where it comes with the system."""

ONE_TOKEN = "generate bundle 'hello' --raw --max-new-tokens 1 > /dev/null"
"""A command that fails where a bundle does not run."""

_GRAPHS = ("verify", "heads", "reduce")
_TRTEXEC = 'trtexec="$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)"'
_MAX_TREE_NODES = 64
_READ_SHARE = 2


def build_lines(bundle: Bundle) -> list[str]:
    """Of a script that builds the engines beside `bundle/`."""
    lines = [
        f"# Builds the engines with the TensorRT {JETSON_TENSORRT} of JetPack 6, on the device.",
        "# Where one Python has both medusa-trt and TensorRT's module, these are engines that",
        "# medusa-trt runs, in the bundle; else trtexec makes some for programs of your own.",
        "if python3 -c 'import medusa_trt, tensorrt' 2> /dev/null; then",
        "  exec python3 -m medusa_trt build bundle --overwrite",
        "fi",
        _TRTEXEC,
        "mkdir -p engines",
    ]
    for graph in _GRAPHS:
        spec = bundle.manifest.graphs[graph]
        arguments = [
            f"--onnx=bundle/{spec.file}",
            f"--saveEngine=engines/{graph}.engine.partial",
            "--stronglyTyped",
            "--skipInference",
            "--timingCacheFile=engines/timing.cache",
            *(
                _shape_argument(f"{which}Shapes", spec, shapes)
                for which, shapes in _shapes(bundle, spec).items()
            ),
        ]
        lines += [
            '"$trtexec" \\\n  ' + " \\\n  ".join(map(shlex.quote, arguments)),
            f"mv engines/{graph}.engine.partial engines/{graph}.engine",
        ]
    return lines


def health_check_lines(bundle: Bundle) -> list[str]:
    """Of a script that runs each engine once; trtexec would draw random token ids and lengths."""
    lines = [
        "# Succeeds where all engines load and run once.",
        "if compgen -G 'bundle/engines/tensorrt-jetson-sm*/engines.json' > /dev/null; then",
        f"  exec python3 -m medusa_trt {ONE_TOKEN}",
        "fi",
        _TRTEXEC,
        'inputs="$(mktemp -d)"',
        "trap 'rm -rf \"$inputs\"' EXIT",
    ]
    for graph in _GRAPHS:
        spec = bundle.manifest.graphs[graph]
        shapes = _shapes(bundle, spec)["opt"]
        integers = [tensor.name for tensor in spec.inputs if tensor.dtype == "int64"]
        lines += [
            f'head -c {8 * prod(shapes[name])} /dev/zero > "$inputs/{name}"' for name in integers
        ]
        arguments = [
            f"--loadEngine=engines/{graph}.engine",
            "--iterations=1 --duration=0 --warmUp=0",
            _shape_argument("shapes", spec, shapes),
        ]
        if integers:
            loaded = ",".join(f"{name}:$inputs/{name}" for name in integers)
            arguments.append(f'--loadInputs="{loaded}"')
        lines.append('"$trtexec" \\\n  ' + " \\\n  ".join(arguments) + " > /dev/null")
    return lines


def _shape_argument(option: str, spec: GraphSpec, shapes: dict[str, list[int]]) -> str:
    """Shapes of the inputs that have a free one."""
    shown = [
        f"{tensor.name}:{'x'.join(map(str, shapes[tensor.name]))}"
        for tensor in spec.inputs
        if any(isinstance(size, str) for size in tensor.shape)
    ]
    return f"--{option}={','.join(shown)}"


def _shapes(bundle: Bundle, spec: GraphSpec) -> dict[str, dict[str, list[int]]]:
    """The least, the usual and the largest shape of each input.

    For one sequence, from one node to a prefill chunk.
    """
    nodes, chunk = bundle.tree.num_nodes, bundle.manifest.target.prefill_chunk
    capacity = num_cache_rows(bundle.manifest.model.max_length, max(_MAX_TREE_NODES, nodes))
    sizes = {
        "batch": (1, 1, 1),
        "num_nodes": (1, nodes, max(nodes, chunk)),
        "num_rows": (1, nodes, max(nodes, chunk)),
        "num_read": (2, capacity // _READ_SHARE, capacity),
        "capacity": (capacity,) * 3,
    }
    return {
        option: {
            tensor.name: [s if isinstance(s, int) else sizes[s][which] for s in tensor.shape]
            for tensor in spec.inputs
        }
        for which, option in enumerate(("min", "opt", "max"))
    }
