"""Contents of a bundle, and the memory and bandwidth that it needs."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec
import onnx_ir as ir

from medusa_trt.errors import ExportError
from medusa_trt.runtime.bundle import Bundle


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `gpus.json`: memory and its bandwidth as the maker states them, decimal units."""

    name: str
    memory_gb: float
    bandwidth_gb_s: float
    source: str

    def compute_max_steps_per_s(self, read_bytes: int) -> float:
        """Upper bound, as if a step only read its weights, and only once."""
        return self.bandwidth_gb_s * 1e9 / read_bytes


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """Facts about one graph.

    Attributes:
        operators: number of nodes of each kind.
        weight_bytes: bytes of all weights, shared ones included.
        read_bytes: bytes of the weights that every step reads whole, so without lookup tables.
        precisions: bytes of weights by type.
    """

    operators: Counter[str]
    weight_bytes: int
    read_bytes: int
    precisions: Counter[str]


@cache
def load_gpus() -> dict[str, Gpu]:
    """Loads the table of GPUs by their short names."""
    data = (resources.files("medusa_trt.export") / "gpus.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Gpu])


def gpu_from_name(name: str) -> Gpu:
    """Looks up a GPU.

    Raises:
        ExportError: it is not in the table.
    """
    if name not in load_gpus():
        raise ExportError(f"unknown GPU {name!r}: choose from {', '.join(load_gpus())}")
    return load_gpus()[name]


def read_graph_facts(bundle: Bundle, graph: str) -> GraphFacts:
    """Reads the facts of a graph without its weights."""
    model = ir.load(bundle.graph_path(graph))
    operators = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph
    )
    precisions: Counter[str] = Counter()
    read_bytes = 0
    for value in model.graph.initializers.values():
        if value.const_value is None:
            continue
        size_bytes = value.const_value.nbytes
        precisions[value.const_value.dtype.name.lower()] += size_bytes
        is_embedding = all(user.op_type == "Gather" and not index for user, index in value.uses())
        is_table = is_embedding or (value.name or "").partition("_")[0] in ("cos", "sin")
        read_bytes += 0 if is_table else size_bytes
    return GraphFacts(operators, precisions.total(), read_bytes, precisions)
