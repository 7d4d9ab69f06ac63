"""Names of products by their place in the model, as tools that quantize graphs look for them."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.passes.rewiring import constant_of
from medusa_trt.export.weights.lazy_tensor import lazy

_PREFIX, _SUFFIX = "model.", ".weight"


class NameProductsPass(CheckedPass):
    """Names a product after the module whose weight it multiplies by, of several the first.

    `model.model.layers.0.mlp.up_proj.weight` makes `/model/layers.0/mlp/up_proj/MatMul`, the name
    that torch's older exporter gives.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Names each."""
        for node in model.graph:
            node.name = _wanted_name(node) or node.name
        return PassResult(model, True)

    def left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each product with another name than its weight's."""
        return (node for node in graph if _wanted_name(node) not in (None, node.name))


def _wanted_name(node: ir.Node) -> str | None:
    """The name of a product by a weight that has one."""
    tensor = constant_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
    sources = () if tensor is None else lazy(tensor).sources
    if not sources or not sources[0].endswith(_SUFFIX):
        return None
    return node_name_of(sources[0].removeprefix(_PREFIX).removesuffix(_SUFFIX))


def node_name_of(path: str) -> str:
    """The name of the node that multiplies by a module's weight."""
    parts: list[str] = []
    for part in path.split("."):
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return f"/{'/'.join(parts)}/MatMul"
