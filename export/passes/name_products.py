"""The pass that names products by their place in the model, as tools that quantize expect."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import read_constant
from medusa_trt.export.weights.lazy_tensor import wrap_tensor

_PREFIX, _SUFFIX = "model.", ".weight"


class NameProductsPass(NodePass[str]):
    """Names a product after the module whose weight it multiplies by, of several the first.

    `model.model.layers.0.mlp.up_proj.weight` makes `/model/layers.0/mlp/up_proj/MatMul`, the name
    that torch's older exporter gives.
    """

    def match(self, node: ir.Node) -> str | None:
        """Name for a product by a module's weight, where the node has another name."""
        tensor = read_constant(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
        sources = () if tensor is None else wrap_tensor(tensor).sources
        if not sources or not sources[0].endswith(_SUFFIX):
            return None
        name = node_name_from_path(sources[0].removeprefix(_PREFIX).removesuffix(_SUFFIX))
        return None if name == node.name else name

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: str) -> None:
        node.name = match


def node_name_from_path(path: str) -> str:
    """Makes the name of the node that multiplies by a module's weight."""
    parts: list[str] = []
    for part in path.split("."):
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return f"/{'/'.join(parts)}/MatMul"
