"""Graphs written as text, and what a pass makes of them; ONNX Runtime computes both sides."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from medusa_trt.export.weights.lazy_tensor import LazyTensor

MAX_DIFFERENCE = 1e-5
OPSETS = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'

Arrays = dict[str, NDArray[np.generic]]


def parsed(text: str, weights: Mapping[str, NDArray[np.generic]]) -> ir.Model:
    """A model from ONNX's text form, all shapes annotated; unused weights are left out."""
    model = ir.from_onnx_text(f"{OPSETS}\n{text}")
    for value in {id(v): v for node in model.graph for v in node.inputs if v}.values():
        if value.name is not None and value.name in weights:
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            value.shape = ir.Shape(weights[value.name].shape)
            value.type = ir.TensorType(value.const_value.dtype)
            model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


def rewritten(
    model: ir.Model, graph_pass: InPlacePass, feeds: Arrays | None = None
) -> Counter[str]:
    """Applies a pass, checks that results and interface stay, and counts the operators in use."""
    before = results(model, feeds or {})
    graph_pass(model)
    after = results(model, feeds or {})
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert np.abs(array - after[name]).max() <= MAX_DIFFERENCE
    assert not graph_pass(model).modified
    RemoveUnusedNodesPass()(model)
    return Counter(node.op_type for node in model.graph)


def results(model: ir.Model, feeds: Arrays) -> dict[str, NDArray[np.float32]]:
    """Outputs by name, on these inputs and random ones for the rest."""
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random = {
        value.name: rng.standard_normal(value.shape).astype(np.float32)
        for value in session.get_inputs()
        if value.name not in feeds
    }
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, random | feeds), strict=True))


def record_reads(model: ir.Model, name: str) -> list[str]:
    """Lets a weight be read when it is used; the list returned gets its name at each use."""
    value, reads = model.graph.initializers[name], list[str]()
    assert value.const_value is not None
    array, dtype = value.const_value.numpy(), value.const_value.dtype

    def read() -> NDArray[np.generic]:
        reads.append(name)
        return array

    value.const_value = LazyTensor(read, array.shape, ("recorded", name), dtype, name)
    return reads
