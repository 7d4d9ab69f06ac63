"""Names of products by their place in the model, as tools that quantize graphs look for them."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from medusa_trt.export.passes.rewiring import constant_of
from medusa_trt.export.weights.lazy_tensor import lazy

_PREFIX, _SUFFIX = "model.", ".weight"


class NameProductsPass(InPlacePass):
    """Names a product after the module whose weight it multiplies by, of several the first.

    Ensures: `model.model.layers.0.mlp.up_proj.weight` makes `/model/layers.0/mlp/up_proj/MatMul`,
    the name that torch's older exporter gives.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Names each."""
        for node in model.graph:
            tensor = constant_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
            sources = () if tensor is None else lazy(tensor).sources
            if sources and sources[0].endswith(_SUFFIX):
                path = sources[0].removeprefix(_PREFIX).removesuffix(_SUFFIX)
                node.name = node_name_of(path)
        return PassResult(model, True)


def node_name_of(path: str) -> str:
    """The name of the node that multiplies by a module's weight."""
    parts: list[str] = []
    for part in path.split("."):
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return f"/{'/'.join(parts)}/MatMul"
