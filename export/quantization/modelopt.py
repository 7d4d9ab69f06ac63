"""A quantization plan in the terms of NVIDIA ModelOpt, which needs a separate environment."""

import re

import msgspec

from medusa_trt.export.passes.name_products import node_name_from_path
from medusa_trt.export.quantization.plan import QuantizationPlan
from medusa_trt.export.weight_formats import is_rounded

_FORMATS = {"int4", "int8", "fp16"}


class ModelOptArguments(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `modelopt.onnx.quantization.quantize`.

    Attributes:
        quantize_mode: always int4, the mode that takes other formats beside it.
        calibration_method: always rounding to nearest; the others run the graph in ONNX Runtime,
            whose CPU provider has no `TensorScatter`.
        nodes_to_exclude: regular expressions of the products that stay as they are.
        layers_8bit: names of those that get 8 bits, with commas between them.
    """

    quantize_mode: str = "int4"
    calibration_method: str = "rtn_dq"
    nodes_to_exclude: tuple[str, ...]
    layers_8bit: str


def arguments_from_plan(plan: QuantizationPlan) -> ModelOptArguments | None:
    """Makes the arguments that quantize the `verify.onnx` of a float16 bundle by a plan.

    None for a plan that ModelOpt has no mode for: without int4, or with fp8 beside it.
    """
    nodes: dict[str, list[str]] = {format_: [] for format_ in _FORMATS}
    for site in plan.sites:
        if site.format not in nodes:
            return None
        nodes[site.format] += [
            node_name_from_path(name.removesuffix(".weight")) for name in site.weights
        ]
    if not nodes["int4"]:
        return None
    unrounded = [
        name for format_, names in nodes.items() if not is_rounded(format_) for name in names
    ]
    return ModelOptArguments(
        # Patterns match the beginning of a name; without its end they would also find `MatMul_1`.
        nodes_to_exclude=tuple(f"{re.escape(name)}$" for name in unrounded),
        layers_8bit=",".join(nodes["int8"]),
    )
