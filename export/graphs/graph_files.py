"""Graphs as files of a bundle, with one copy of each weight."""

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from medusa_trt.export.weights.weight_file import WeightFile
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.manifest import GraphSpec, TensorSpec


class GraphWriter:
    """Writes graphs into a bundle's folder, one after the other.

    Large weights go to one external file. A weight of several graphs is written once: heads that
    share the unembedding, and the batch form of the verify graph, refer to the same bytes. A
    protobuf file cannot hold more than 2 GB, and the heads of a large model are larger.

    Attributes:
        specs: the interfaces of the graphs that were written, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the bundle's folder, which holds no weights yet."""
        self.specs: dict[str, GraphSpec] = {}
        self._folder, self._weights = folder, WeightFile(folder / names.WEIGHTS_FILE)

    def save(self, name: str, model: ir.Model) -> None:
        """Writes a graph; `name` is a key of `GRAPH_FILES`."""
        self._weights.take(model)
        ir.save(model, self._folder / names.GRAPH_FILES[name])
        self.specs[name] = describe_graph(self._folder, name)


def describe_graph(folder: Path, graph: str) -> GraphSpec:
    """Reads the interface of a graph that was written."""
    file = names.GRAPH_FILES[graph]
    saved = ir.load(folder / file).graph
    return GraphSpec(file, _list_tensor_specs(saved.inputs), _list_tensor_specs(saved.outputs))


def _list_tensor_specs(values: Iterable[ir.Value]) -> list[TensorSpec]:
    specs = []
    for value in values:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
        specs.append(TensorSpec(value.name, value.dtype.name.lower(), shape))
    return specs
