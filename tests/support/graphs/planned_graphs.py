"""Verify graphs whose matrices have the formats of a plan."""

import onnx_ir as ir
from transformers import PreTrainedModel

from medusa_trt.export.graphs.verify_graph import trace_verify
from medusa_trt.export.graphs.verify_module import VerifyModule
from medusa_trt.export.modeling.attention_forms import choose_attention
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
