"""The graph pass that rounds the weights of a precision."""

from onnx_ir.passes import InPlacePass

from medusa_trt.export.passes import QuantizeLinearPass, QuantizeWeightsPass
from medusa_trt.export.targets import Precision
from medusa_trt.export.weight_formats import (
    FORMAT_OF_BITS,
    FormatOf,
    Noted,
    format_by_outputs,
    one_format,
)


def layers_pass(
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
    if precision.weights is not None:
        # A device multiplies by the unembedding in the type of the computation.
        return QuantizeWeightsPass(
            planned or format_by_outputs(precision.weights, None, vocab_size), noted
        )
    if precision.layer_bits is None or precision.unembedding_bits is None:
        return None
    layers, unembedding = precision.layer_bits, precision.unembedding_bits
    uniform = format_by_outputs(FORMAT_OF_BITS[layers], FORMAT_OF_BITS[unembedding], vocab_size)
    return QuantizeLinearPass(planned or uniform, noted)


def heads_pass(precision: Precision) -> InPlacePass | None:
    """For the heads, in which no unembedding must be kept: what they draft is checked."""
    if precision.weights is not None:
        return QuantizeWeightsPass(one_format(precision.weights))
    return None if precision.layer_bits is None else QuantizeLinearPass(one_format("int8"))
