"""Verify graphs whose matrices have the formats of a plan."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from transformers import PreTrainedModel

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.attention_forms import choose_attention
from medusa_trt.export.quantization.library import QuantizedWeight, dequantize_weight
from medusa_trt.export.quantization.plan import (
    PlannedFormats,
    PlannedSite,
    QuantizationPlan,
    precision_from_plan,
)
from medusa_trt.export.quantization.rounding_pass import make_layers_pass
from medusa_trt.export.quantization.sites import Site
from medusa_trt.export.targets import TARGETS
from medusa_trt.export.weight_formats import Format
from medusa_trt.export.weights.streamed_model import wrap_weights


def plan_of(
    sites: list[Site], formats: tuple[Format, ...], target: str = "ort-cpu"
) -> QuantizationPlan:
    """Formats in turn."""
    return QuantizationPlan(
        model="tiny",
        target=target,
        sites=tuple(
            PlannedSite(site.name, formats[index % len(formats)], site.weights)
            for index, site in enumerate(sites)
        ),
    )


def planned_graph(
    model: PreTrainedModel, plan: QuantizationPlan, target: str = "ort-cpu"
) -> ir.Model:
    """The verify graph with a plan's formats."""
    precision = precision_from_plan(TARGETS[target], plan)
    formats = PlannedFormats(plan, model, "model.")
    form = choose_attention(TARGETS[target].attention, has_library=precision.uses_library)["verify"]
    quantize = make_layers_pass(precision, model.config.vocab_size, formats)
    weights = wrap_weights(model) if precision.uses_library else None
    graph = trace_verify(VerifyModule(model, 64, form), TARGETS[target].opset, quantize, weights)
    formats.check()
    return graph


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _read_array(value: ir.Value | None) -> NDArray[np.generic]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def quantized_weights(graph: ir.Graph) -> list[QuantizedWeight]:
    """What the operator library multiplies by."""
    found = []
    for node in graph:
        if node.op_type not in ("Linear", "LinearChain"):
            continue
        suffixes = (
            range(node.attributes.get_int("num_layers", 0))
            if node.op_type == "LinearChain"
            else [""]
        )
        for number, suffix in enumerate(suffixes):
            bits = node.attributes.get_int(f"bits{suffix}", 0)
            first = 1 if suffix == "" else 2 + 4 * number
            data, scales = _read_array(node.inputs[first]), _read_array(node.inputs[first + 1])
            found.append(QuantizedWeight(data.astype(np.uint8), scales.astype(np.float16), bits))
    return found


def dequantize_whole(stored: QuantizedWeight) -> NDArray[np.float32]:
    """The (inputs, outputs) matrix with its padding."""
    num_inputs = stored.scales.shape[1] * (64 if stored.bits == 8 else 32)
    return dequantize_weight(stored, num_inputs, len(stored.data) * 16)


def stored_matrices(graph: ir.Graph) -> list[tuple[str, NDArray[np.float32]]]:
    """The format of each matrix that the operator library or ONNX Runtime multiplies by."""
    found = [(f"int{stored.bits}", dequantize_whole(stored)) for stored in quantized_weights(graph)]
    for node in graph:
        if node.op_type in ("MatMul", "Gemm") and is_constant(node.inputs[1]):
            weight = _read_array(node.inputs[1]).astype(np.float32)
            found.append(("fp32", weight.T if node.op_type == "Gemm" else weight))
    return found
