"""The pass that turns a graph to float32, for engines that lack the narrow types."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult

from medusa_trt.export.passes.checked_pass import CheckedPass
from medusa_trt.export.weights.lazy_tensor import wrap_tensor

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class WidenFloatsPass(CheckedPass):
    """Turns float16 and bfloat16 into float32 everywhere: values, weights and casts.

    The result computes the same function without the rounding between operators, so a graph that
    ONNX Runtime has no kernels for can be compared with its model.
    """

    def call(self, model: ir.Model) -> PassResult:
        graph = model.graph
        for value in _list_values(graph):
            if value.dtype in _NARROW:
                value.dtype = ir.DataType.FLOAT
                if value.const_value is not None and value.is_initializer():
                    value.const_value = wrap_tensor(value.const_value).convert(ir.DataType.FLOAT)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    tensor = attribute.as_tensor()
                    if tensor.dtype in _NARROW:
                        wide = ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
                        node.attributes[name] = ir.AttrTensor(name, wide)
                elif name in ("to", "output_dtype") and attribute.as_int() in _NARROW:
                    node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        return PassResult(model, True)

    def find_left_over(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """Finds each node that reads or makes a narrow value."""
        for node in graph:
            if any(value and value.dtype in _NARROW for value in (*node.inputs, *node.outputs)):
                yield node


def _list_values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
