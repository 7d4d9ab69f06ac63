"""The graph pass that rounds the weights of a precision."""

from onnx_ir.passes import InPlacePass

from medusa_trt.export.quantization.quantize_linear import QuantizeLinearPass
from medusa_trt.export.quantization.quantize_weights import QuantizeWeightsPass
from medusa_trt.export.targets import Precision
from medusa_trt.export.weight_formats import (
    FormatOf,
    Noted,
    format_by_outputs,
    one_format,
)


def make_layers_pass(
    precision: Precision,
    vocab_size: int,
    planned: FormatOf | None,
    noted: Noted | None = None,
) -> InPlacePass | None:
    """For the verify graph; None where nothing is rounded.

    Args:
        precision: of the export.
        vocab_size: the number of outputs by which the unembedding is known.
        planned: the formats of a quantization plan.
        noted: told of each matrix that is stored.
    """
    if precision.layers is None:
        return None
    formats = planned or format_by_outputs(precision.layers, precision.unembedding, vocab_size)
    return _pass_class(precision)(formats, noted)


def make_heads_pass(precision: Precision) -> InPlacePass | None:
    """For the heads, in which no unembedding must be kept: what they draft is checked."""
    return None if precision.heads is None else _pass_class(precision)(one_format(precision.heads))


def _pass_class(precision: Precision) -> type[QuantizeLinearPass] | type[QuantizeWeightsPass]:
    return QuantizeLinearPass if precision.uses_library else QuantizeWeightsPass
