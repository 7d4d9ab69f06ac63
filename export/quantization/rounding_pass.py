"""The graph pass that rounds the weights of a precision."""

from onnx_ir.passes import InPlacePass

from medusa_trt.export.quantization.quantize_linear import QuantizeLinearPass
from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass
from medusa_trt.export.targets import Precision
from medusa_trt.export.weight_formats import (
    ChooseFormat,
    ReportStored,
    choose_by_outputs,
    use_one_format,
)


def make_layers_pass(
    precision: Precision,
    vocab_size: int,
    planned: ChooseFormat | None,
    report_stored: ReportStored | None = None,
) -> InPlacePass | None:
    """Makes the pass for the verify graph; None where the precision rounds no layer.

    Args:
        precision: precision of the export.
        vocab_size: number of outputs that only the unembedding has.
        planned: formats of a quantization plan.
        report_stored: called for each matrix that is stored.
    """
    if precision.layers is None:
        return None
    formats = planned or choose_by_outputs(precision.layers, precision.unembedding, vocab_size)
    return _pass_class(precision)(formats, report_stored)


def make_heads_pass(precision: Precision) -> InPlacePass | None:
    """Makes the pass for the heads graph, whose unembedding is rounded too: drafts are verified."""
    if precision.heads is None:
        return None
    return _pass_class(precision)(use_one_format(precision.heads))


def _pass_class(precision: Precision) -> type[QuantizeLinearPass] | type[QuantizeWeightsPass]:
    return QuantizeLinearPass if precision.uses_library else QuantizeWeightsPass
