"""Scripts that build engines with a Jetson's own TensorRT, and check them."""

from math import prod

from medusa_trt.export.deploy.templates import render_template
from medusa_trt.export.tensorrt.options import count_cache_rows
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import GraphSpec

JETSON_TENSORRT = "10.3"
"""TensorRT version of JetPack 6.1 and 6.2, where it comes with the system."""

_GRAPHS = ("verify", "heads", "reduce")
_MAX_TREE_NODES = 64
_READ_SHARE = 2  # The usual step reads half of the cache.


def render_build_script(bundle: Bundle) -> str:
    """Returns a script that builds the engines of the bundle beside it."""
    values = {"tensorrt_version": JETSON_TENSORRT, "graphs": _list_graphs(bundle)}
    return render_template("jetson_build_engines.sh", values)


def render_health_check(bundle: Bundle) -> str:
    """Returns a script that runs each engine once."""
    return render_template("jetson_health_check.sh", {"graphs": _list_graphs(bundle)})


def _list_graphs(bundle: Bundle) -> list[dict[str, object]]:
    """Lists the graphs with what the templates show of each.

    These are the shapes of the inputs with a free size, for trtexec, and the bytes of each int64
    input at the usual shape.
    """
    graphs: list[dict[str, object]] = []
    for name in filter(bundle.manifest.graphs.__contains__, _GRAPHS):
        spec = bundle.manifest.graphs[name]
        shapes = _make_shapes(bundle, spec)
        int_bytes = {
            tensor.name: 8 * prod(shapes["opt"][tensor.name])
            for tensor in spec.inputs
            if tensor.dtype == "int64"
        }
        texts = {f"{option}_shapes": _join_shapes(spec, shapes[option]) for option in shapes}
        graphs.append({"name": name, "file": spec.file, "integer_bytes": int_bytes, **texts})
    return graphs


def _join_shapes(spec: GraphSpec, shapes: dict[str, list[int]]) -> str:
    """Joins the shapes of the inputs with a free size, in the form of trtexec's options."""
    return ",".join(
        f"{tensor.name}:{'x'.join(map(str, shapes[tensor.name]))}"
        for tensor in spec.inputs
        if any(isinstance(size, str) for size in tensor.shape)
    )


def _make_shapes(bundle: Bundle, spec: GraphSpec) -> dict[str, dict[str, list[int]]]:
    """Returns the smallest, the usual and the largest shape of each input.

    They are for one sequence, and range from one node to a prefill chunk.
    """
    nodes, chunk = bundle.tree.num_nodes, bundle.manifest.target.prefill_chunk
    capacity = count_cache_rows(bundle.manifest.model.max_length, max(_MAX_TREE_NODES, nodes))
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
