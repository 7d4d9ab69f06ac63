"""The pass that stores the table of token embeddings in 8 bits."""

import onnx_ir as ir

from medusa_trt.export.passes.checked_pass import NodePass
from medusa_trt.export.passes.rewiring import add_initializer, read_constant, take_over
from medusa_trt.export.quantization.quantize_linear import quantize_layer
from medusa_trt.export.weight_formats import ReportStored
from medusa_trt.export.weights.lazy_tensor import LazyTensor, transpose_tensor, wrap_tensor
from medusa_trt.runtime import tensors as names
from medusa_trt.runtime.engines.operators import DOMAIN

_BITS = 8


class QuantizeEmbeddingPass(NodePass[LazyTensor]):
    """Rewrites the lookup of token embeddings to the operator library's `Embedding`.

    The table is stored as the weights of a layer with one output for each token. So a bundle holds
    it once if the unembedding is the same matrix in 8 bits.
    """

    domain = DOMAIN

    def __init__(self, report_stored: ReportStored | None = None) -> None:
        """Takes the function that is told of a table once it is read."""
        super().__init__()
        self._report_stored = report_stored

    def match(self, node: ir.Node) -> LazyTensor | None:
        """Table of a lookup by the graph's token ids."""
        if node.op_type != "Gather" or node.domain != "" or (node.attributes.get_int("axis") or 0):
            return None
        table, ids = read_constant(node.inputs[0]), node.inputs[1]
        if table is None or len(table.shape) != 2 or table.dtype != ir.DataType.FLOAT:
            return None
        is_of_tokens = ids is not None and ids.name in (names.INPUT_IDS, names.ROOT_IDS)
        return wrap_tensor(table) if is_of_tokens else None

    def rewrite(self, graph: ir.Graph, node: ir.Node, match: LazyTensor) -> None:
        data, scales = quantize_layer(transpose_tensor(match), _BITS, self._report_stored)
        embedding = ir.Node(
            DOMAIN,
            "Embedding",
            [
                node.inputs[1],
                add_initializer(graph, "embedding.weight", data),
                add_initializer(graph, "embedding.scales", scales),
            ],
            [ir.AttrInt64("size", match.sizes[1])],
        )
        graph.insert_before(node, embedding)
        take_over(node.outputs[0], embedding.outputs[0])
        graph.remove(node, safe=True)
