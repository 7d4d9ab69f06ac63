"""Models of linear layers for the tests of `LinearChain`."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from medusa_trt.export.quantization.library import quantize_weight
from medusa_trt.runtime.engines.operators import DOMAIN, require_library

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A `Linear` to be; `source` and `residual` are earlier layers, -1 for the chain's input."""

    num_outputs: int
    source: int = -1
    residual: int | None = None
    gated: bool = False
    normed: bool = False
    biased: bool = False


def model_of(
    layers: tuple[Layer, ...], num_inputs: int, results: set[int], bits: int = 8
) -> ir.Model:
    """Each layer as a node; `x` is input and residual where its width allows, else `r` is added."""
    rng = np.random.default_rng(len(layers))
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape(["rows", num_inputs]))
    added = {layer.num_outputs for layer in layers if layer.residual == -1}
    residual = ir.val("r", ir.DataType.FLOAT, ir.Shape(["rows", max(added, default=1)]))
    constants: list[ir.Value] = []

    def constant(name: str, array: NDArray[np.generic]) -> ir.Value:
        constants.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return constants[-1]

    nodes: list[ir.Node] = []
    for i, layer in enumerate(layers):
        source = x if layer.source < 0 else nodes[layer.source].outputs[0]
        size = num_inputs if layer.source < 0 else layers[layer.source].num_outputs
        columns = layer.num_outputs + -layer.num_outputs % 16
        weight = rng.normal(size=(size, columns * 2 if layer.gated else layer.num_outputs))
        quantized = quantize_weight((weight / 8).astype(np.float32), bits)
        inputs: list[ir.Value | None] = [
            source,
            constant(f"w{i}", quantized.data),
            constant(f"s{i}", quantized.scales),
            constant(f"n{i}", rng.uniform(0.5, 2, size).astype(np.float32))
            if layer.normed
            else None,
            constant(f"b{i}", rng.normal(size=len(quantized.data) * 16).astype(np.float32))
            if layer.biased
            else None,
        ]
        if layer.residual is not None:
            inputs.append(residual if layer.residual < 0 else nodes[layer.residual].outputs[0])
        attributes = {
            "bits": bits,
            "num_outputs": layer.num_outputs,
            "activation": int(layer.gated),
            "gated": int(layer.gated),
            "epsilon": 1e-5,
        }
        nodes.append(ir.node("Linear", inputs, attributes, domain=DOMAIN))
        (y,) = nodes[-1].outputs
        y.name, y.dtype, y.shape = f"y{i}", ir.DataType.FLOAT, ir.Shape(["rows", None])
    graph = ir.Graph(
        [x, residual],
        [nodes[i].outputs[0] for i in sorted(results)],
        nodes=nodes,
        initializers=constants,
        opset_imports={"": 21, DOMAIN: 1},
    )
    return ir.Model(graph, ir_version=10)


def opened(model: ir.Model, threads: int, library: Path | None = None) -> ort.InferenceSession:
    """A session with so many threads, on the installed library or another."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(os.fspath(library or require_library()))
    options.intra_op_num_threads = threads
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def feeds_of(model: ir.Model, num_rows: int) -> dict[str, Floats]:
    """Random inputs."""
    rng = np.random.default_rng(num_rows)
    sizes = {str(value.name): value.shape for value in model.graph.inputs}
    return {
        name: rng.normal(size=(num_rows, int(str(shape[1])))).astype(np.float32)
        for name, shape in sizes.items()
        if shape is not None
    }
